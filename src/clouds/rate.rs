//! How many requests one access key may make in a second. Pure.

use std::collections::BTreeMap;
use std::time::Instant;

/// Allowances by name: of a bounded number of names, since only keys that verified have one.
#[derive(Debug)]
pub(crate) struct Rates {
    per_sec: f64,
    buckets: BTreeMap<String, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
}

impl Rates {
    /// So many requests a second each, and as many at once.
    pub(crate) fn new(per_sec: u32) -> Self {
        Self { per_sec: f64::from(per_sec), buckets: BTreeMap::new() }
    }

    /// Whether one more is within what that name may do now.
    pub(crate) fn admit(&mut self, name: &str, now: Instant) -> bool {
        if !self.buckets.contains_key(name) {
            let bucket = Bucket { left: self.per_sec, filled: now };
            self.buckets.insert(name.to_owned(), bucket);
        }
        let Some(bucket) = self.buckets.get_mut(name) else { return false };
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.left = (bucket.left + passed * self.per_sec).min(self.per_sec);
        bucket.filled = now;
        if bucket.left < 1.0 {
            return false;
        }
        bucket.left -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_name_has_so_many_a_second_and_takes_none_of_another_s() {
        let mut rates = Rates::new(10);
        let start = Instant::now();
        let taken = |rates: &mut Rates, name: &str, at: Duration| {
            (0..100).filter(|_| rates.admit(name, start + at)).count()
        };
        assert_eq!(taken(&mut rates, "a", Duration::ZERO), 10);
        assert_eq!(taken(&mut rates, "b", Duration::ZERO), 10);
        assert_eq!(taken(&mut rates, "a", Duration::from_millis(510)), 5);
        assert_eq!(taken(&mut rates, "a", Duration::from_secs(100)), 10, "nothing is saved up");
    }
}
