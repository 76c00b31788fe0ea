// SPDX-License-Identifier: GPL-2.0-only

//! Little-endian fields at the beginning of a slice: the value and what follows, or `None`.

/// Takes a `__le16`.
pub(super) fn take_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (field, rest) = bytes.split_first_chunk()?;
    Some((u16::from_le_bytes(*field), rest))
}

/// Takes a `__le32`.
pub(super) fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (field, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*field), rest))
}

/// Takes a `__le64`.
pub(super) fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (field, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*field), rest))
}
