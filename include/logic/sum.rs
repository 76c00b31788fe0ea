// SPDX-License-Identifier: GPL-2.0-only

//! Sums that are kept up to date: what was counted in is counted out.

/// `sum` without `part`, which is in it.
///
/// If it is not, a sum is wrong: that is told once, and the sum is 0 from then on.
pub(crate) fn less(sum: u64, part: u64) -> u64 {
    match sum.checked_sub(part) {
        Some(rest) => rest,
        None => {
            broken();
            0
        }
    }
}

#[cfg(MODULE)]
fn broken() {
    kernel::pr_warn_once!("more is counted out than was counted in\n");
}

#[cfg(not(MODULE))]
fn broken() {
    debug_assert!(false, "more is counted out than was counted in");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_goes_out() {
        assert_eq!(less(5, 3), 2);
        assert_eq!(less(5, 5), 0);
    }

    #[test]
    #[should_panic]
    fn more_is_told() {
        less(5, 6);
    }
}
