//! The clock seam. Wall time is `jiff::Timestamp`; elapsed time is `tokio::time::Instant`, which tests can pause.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;

/// Source of wall time. Elapsed time and sleeping go through `tokio::time`, which a test pauses and advances.
pub trait Clock: Send + Sync + 'static {
    /// Wall time now, to the nanosecond.
    fn now(&self) -> Timestamp;
}

/// A clock that many owners share.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A clock that moves only when a test says so.
#[derive(Debug)]
pub struct FakeClock(Mutex<Timestamp>);

impl FakeClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Arc<Self> {
        Arc::new(Self(Mutex::new(start)))
    }

    /// Moves the clock forward; saturates at the end of time.
    pub fn advance(&self, by: Duration) {
        let mut now = self.0.lock();
        let span = jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX);
        *now = now.saturating_add(span).unwrap_or(Timestamp::MAX);
    }

    /// Sets the clock, as an administrator or NTP does: forward or back.
    pub fn set(&self, to: Timestamp) {
        *self.0.lock() = to;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}

/// Monotonic time, for measuring how long something took.
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
