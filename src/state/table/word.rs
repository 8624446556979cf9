//! Access to words that outlive their writer. PURE.
use std::sync::atomic::{AtomicU64, Ordering};

/// The value for "yes". It does not arise by chance.
pub(super) const YES: u64 = 0x7965_7321;

/// Stores a word after all earlier stores. So the words that a dead writer leaves show what it did until then.
pub(super) fn store(word: &AtomicU64, value: u64) {
    #[cfg(test)]
    if !fuse::holds() {
        return;
    }
    word.store(value, Ordering::Release);
}

/// Returns a checksum of the words and their order.
pub(super) fn seal(words: &[u64]) -> u64 {
    // The finaliser of MurmurHash3, applied to each word.
    words.iter().fold(0x9e37_79b9_7f4a_7c15, |sum: u64, word| {
        let mut mixed = (sum ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    })
}

#[cfg(test)]
pub(super) mod fuse {
    //! A fuse that kills the writer after a number of stores: later stores have no effect.
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    pub fn holds() -> bool {
        LEFT.with(|left| left.replace(left.get().saturating_sub(1)) > 0)
    }

    /// Runs `work`, of which only the first `stores` stores take effect. Returns how many are left.
    pub fn burns_after(stores: usize, work: impl FnOnce()) -> usize {
        LEFT.set(stores);
        work();
        LEFT.replace(usize::MAX)
    }
}
