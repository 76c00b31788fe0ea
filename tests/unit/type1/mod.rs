// SPDX-License-Identifier: GPL-2.0-only

//! What the host's module knows of type1's structures, which needs no kernel.

#[path = "../../../host/type1/info.rs"]
pub(crate) mod info;
#[cfg(test)]
mod tests;
#[path = "../../../host/type1/uapi.rs"]
pub(crate) mod uapi;
