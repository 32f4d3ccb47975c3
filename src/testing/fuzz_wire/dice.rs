//! Choices: of a seed without end, or of a fuzzer's bytes as long as they last.

/// Where choices come from.
#[derive(Debug)]
pub(super) enum Dice<'a> {
    /// Without end.
    Seed(u64),
    /// As long as there are bytes; then always 0.
    Script(&'a [u8]),
}

impl Dice<'_> {
    pub(super) fn seeded(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike.
        Self::Seed(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`, of at most 256.
    pub(super) fn below(&mut self, n: usize) -> usize {
        debug_assert!((1..=256).contains(&n));
        match self {
            Self::Seed(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                usize::from(state.to_le_bytes()[4]) % n
            }
            Self::Script(bytes) => {
                let Some((first, rest)) = bytes.split_first() else { return 0 };
                *bytes = rest;
                usize::from(*first) % n
            }
        }
    }

    /// Once in `n` times.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// Whether a script has run out.
    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Script([]))
    }
}
