//! Words that outlive their writer. PURE.
use std::sync::atomic::{AtomicU64, Ordering};

/// Looks like nothing that is there by chance.
pub(super) const YES: u64 = 0x7965_7321;

/// Each store comes behind those before it, so that what is seen after a death is what was done until then.
pub(super) fn store(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    if !fuse::holds() {
        return;
    }
    word.store(value, Ordering::Release);
}

/// A number that only these words give, in this order, as far as chance goes.
pub(super) fn seal(words: &[u64]) -> u64 {
    // The finaliser of MurmurHash3, over and over.
    words.iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, word| {
        let mut mixed = (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    })
}

#[cfg(test)]
pub(super) mod fuse {
    //! Kills the writer behind so many stores, as far as they can tell.
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    pub fn holds() -> bool {
        LEFT.with(|left| left.replace(left.get().saturating_sub(1)) > 0)
    }

    /// Does `work`, of which `stores` stores are done; gives how many are left.
    pub fn burns_after(stores: usize, work: impl FnOnce()) -> usize {
        LEFT.set(stores);
        work();
        LEFT.replace(usize::MAX)
    }
}
