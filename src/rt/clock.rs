//! The clock seam. Wall time is `jiff::Timestamp`; elapsed time is `tokio::time::Instant`, which tests can pause.
//!
//! Who waits for a time of day sleeps for what is left until then, and is woken when the clock is set or the machine has slept
//! ([`Clock::steps`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::TaskGroup;

/// Source of wall time. Elapsed time and sleeping go through `tokio::time`, which a test pauses and advances.
pub trait Clock: Send + Sync + 'static {
    /// Wall time now, to the nanosecond.
    fn now(&self) -> Timestamp;

    /// Changes when the clock is set, or goes on after the machine slept, so that what was waited for may be due.
    fn steps(&self) -> watch::Receiver<()>;
}

/// A clock that many owners share.
pub type SharedClock = Arc<dyn Clock>;

static STEPS: LazyLock<watch::Sender<()>> = LazyLock::new(watch::Sender::default);

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl SystemClock {
    /// The machine's clock, whose steps are told from now on.
    pub fn start(tasks: &TaskGroup) -> SharedClock {
        let token = tasks.token();
        tasks.spawn(async move {
            if let Some(Err(error)) = token.run_until_cancelled(tell_steps()).await {
                tracing::warn!(%error, "steps of the clock are not seen");
            }
        });
        Arc::new(Self)
    }
}

/// A timer that never ends; waiting for it is cancelled when the clock is set (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`).
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

async fn tell_steps() -> io::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
    // SAFETY: the timer is the descriptor's only owner, and gives the same one for as long as it lives.
    let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?;
    let never = Expiration::OneShot(TimeSpec::new(i64::MAX, 0));
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    loop {
        match timer.get_ref().0.set(never, flags) {
            Ok(()) => {}
            // Set once more since.
            Err(Errno::ECANCELED) => continue,
            Err(error) => return Err(error.into()),
        }
        loop {
            let mut ready = timer.readable().await?;
            match timer.get_ref().0.wait() {
                Ok(()) => break,
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!("the clock was set");
        STEPS.send_replace(());
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn steps(&self) -> watch::Receiver<()> {
        STEPS.subscribe()
    }
}

/// A clock that moves only when a test says so.
#[derive(Debug)]
pub struct FakeClock {
    now: Mutex<Timestamp>,
    steps: watch::Sender<()>,
}

impl FakeClock {
    /// A clock that stands at `start`.
    pub fn new(start: Timestamp) -> Arc<Self> {
        Arc::new(Self { now: Mutex::new(start), steps: watch::Sender::default() })
    }

    /// Moves the clock forward, as time does; saturates at the end of time.
    pub fn advance(&self, by: Duration) {
        let mut now = self.now.lock();
        let span = jiff::SignedDuration::try_from(by).unwrap_or(jiff::SignedDuration::MAX);
        *now = now.saturating_add(span).unwrap_or(Timestamp::MAX);
    }

    /// Sets the clock, as an administrator or NTP does: forward or back.
    pub fn set(&self, to: Timestamp) {
        *self.now.lock() = to;
        self.steps.send_replace(());
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        *self.now.lock()
    }

    fn steps(&self) -> watch::Receiver<()> {
        self.steps.subscribe()
    }
}

/// The time zone of the machine; UTC if it names none.
pub fn local_zone() -> TimeZone {
    TimeZone::system()
}

/// Monotonic time, for measuring how long something took.
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
