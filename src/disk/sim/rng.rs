//! Numbers that look random and follow from a seed.

/// A generator of numbers; the same seed gives the same ones.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator that begins at that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `end`, exclusive; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next_u64() % end.max(1)
    }

    /// True in `of` of `among` cases.
    pub fn chance(&mut self, of: u64, among: u64) -> bool {
        // Draws only where there is a choice: a fault that is off must not change the rest.
        of > 0 && self.below(among) < of
    }

    /// One of these; none when there are none.
    pub fn pick<T: Clone>(&mut self, among: &[T]) -> Option<T> {
        let count = u64::try_from(among.len()).unwrap_or(0);
        let at = usize::try_from(self.below(count)).unwrap_or(0);
        among.get(at).cloned()
    }
}
