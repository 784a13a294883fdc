//! The runtime seams: everything that is not deterministic (clock, random numbers, spawning) and what every module shares
//! (limits, logging, metrics, backoff). Imports nothing of ours.

pub mod backoff;
pub mod clock;
pub mod files;
pub mod gates;
pub mod limits;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod random;
pub mod tasks;

pub use backoff::Backoff;
pub use clock::{Clock, SystemClock};
pub use tasks::TaskGroup;
