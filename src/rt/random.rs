//! The random-number seam: uids, name suffixes, jitter, secrets.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// The alphabet of generated names: no vowels and no look-alikes, as in apimachinery's `util/rand`.
const ALPHANUMS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Fills `buffer` with random bytes fit for keys and tokens.
pub fn fill(buffer: &mut [u8]) {
    // The kernel's generator fails only before it is seeded at boot; there is nothing to do but to try again.
    let random = SystemRandom::new();
    while random.fill(buffer).is_err() {
        std::thread::yield_now();
    }
}

/// A random (version 4) UUID in its usual text form, for `metadata.uid`.
pub fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// `length` characters for a generated name, from the alphabet Kubernetes uses.
pub fn suffix(length: usize) -> String {
    let mut bytes = vec![0_u8; length];
    fill(&mut bytes);
    bytes.iter().map(|byte| char::from(ALPHANUMS[usize::from(*byte) % ALPHANUMS.len()])).collect()
}

/// A random number in `0..bound`; 0 if `bound` is 0.
pub fn below(bound: u64) -> u64 {
    let mut bytes = [0_u8; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes).checked_rem(bound).unwrap_or(0)
}

/// `base` plus up to `fraction` (0.0 to 1.0) of it, so that many callers do not act at once.
pub fn jitter(base: Duration, fraction: f64) -> Duration {
    let part = below(1_000_000) as f64 / 1_000_000.0;
    base + base.mul_f64((fraction * part).clamp(0.0, 1.0))
}
