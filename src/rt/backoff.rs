//! Exponential backoff with a cap and jitter, for every retry in the program.

use std::time::Duration;

use super::random;

/// Grows from `base`, doubling, to `cap`; each delay has up to 10 % jitter on top.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    /// A backoff that starts at `base` and never exceeds `cap` (before jitter).
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempts: 0 }
    }

    /// The delay before the next try.
    pub fn next_delay(&mut self) -> Duration {
        let exact = exponential(self.base, self.cap, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        random::jitter(exact, 0.1)
    }

    /// Starts again at `base`.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How many delays were handed out since the last reset.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// `base * 2^attempt`, at most `cap`.
pub fn exponential(base: Duration, cap: Duration, attempt: u32) -> Duration {
    let factor = 1_u32.checked_shl(attempt.min(31)).unwrap_or(u32::MAX);
    base.checked_mul(factor).map_or(cap, |delay| delay.min(cap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_cap() {
        let (base, cap) = (Duration::from_secs(10), Duration::from_secs(300));
        let secs: Vec<u64> = (0..8).map(|n| exponential(base, cap, n).as_secs()).collect();
        assert_eq!(secs, [10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(exponential(base, cap, 200), cap);
    }
}
