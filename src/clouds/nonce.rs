//! Which signed requests have been seen before, for as long as their time stamps are good. Pure.

use std::collections::{BTreeMap, HashSet};

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NonceFault {
    /// It has been seen.
    Used,
    /// So many are remembered that no more can be, until some have expired.
    Full,
}

/// What happens when the memory is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// No request is taken that could be taken twice.
    Refuse,
    /// What would expire first is forgotten: for requests that change nothing.
    Forget,
}

/// Nonces that were used, 16 bytes each.
#[derive(Debug)]
pub(crate) struct Nonces {
    seen: HashSet<[u8; 16]>,
    by_end: BTreeMap<i64, Vec<[u8; 16]>>,
    count_max: usize,
    when_full: WhenFull,
}

impl Nonces {
    pub(crate) fn new(count_max: usize, when_full: WhenFull) -> Self {
        Self { seen: HashSet::new(), by_end: BTreeMap::new(), count_max, when_full }
    }

    /// Takes note of a nonce of that access key, which need not be remembered after `end_sec`.
    pub(crate) fn admit(
        &mut self,
        access_key: &str,
        nonce: &str,
        end_sec: i64,
        now_sec: i64,
    ) -> Result<(), NonceFault> {
        while let Some(first) = self.by_end.first_entry() {
            let full = self.seen.len() >= self.count_max && self.when_full == WhenFull::Forget;
            if *first.key() >= now_sec && !full {
                break;
            }
            for old in first.remove() {
                self.seen.remove(&old);
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&u64::try_from(access_key.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(access_key.as_bytes()).update(nonce.as_bytes());
        let mut mark = [0; 16];
        hasher.finalize_xof().fill(&mut mark);
        if self.seen.contains(&mark) {
            return Err(NonceFault::Used);
        }
        if self.seen.len() >= self.count_max {
            return Err(NonceFault::Full);
        }
        self.seen.insert(mark);
        self.by_end.entry(end_sec).or_default().push(mark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_once_until_its_time_is_over() {
        let mut nonces = Nonces::new(100, WhenFull::Refuse);
        assert_eq!(nonces.admit("k", "n", 900, 0), Ok(()));
        for now in [0, 1, 900] {
            assert_eq!(nonces.admit("k", "n", 900, now), Err(NonceFault::Used));
        }
        assert_eq!(nonces.admit("kn", "", 900, 0), Ok(()), "not the same by being joined");
        assert_eq!(nonces.admit("q", "n", 900, 0), Ok(()), "another key's");
        // By now its time stamp is too old for the request to be taken at all.
        assert_eq!(nonces.admit("k", "n", 1801, 901), Ok(()));
    }

    #[test]
    fn memory_is_bounded() {
        let mut strict = Nonces::new(10, WhenFull::Refuse);
        let mut loose = Nonces::new(10, WhenFull::Forget);
        for number in 0..10 {
            assert_eq!(strict.admit("k", &number.to_string(), 100 + number, 0), Ok(()));
        }
        assert_eq!(strict.admit("k", "x", 200, 0), Err(NonceFault::Full));
        assert_eq!(strict.admit("k", "x", 200, 101), Ok(()), "the first has expired");
        for number in 0..1000 {
            assert_eq!(loose.admit("k", &number.to_string(), 100 + number, 0), Ok(()));
            assert!(loose.seen.len() <= 10 && loose.by_end.len() <= 10);
        }
        assert_eq!(loose.admit("k", "999", 2000, 0), Err(NonceFault::Used));
        assert_eq!(loose.admit("k", "0", 2000, 0), Ok(()), "long forgotten");
    }
}
