//! Pods: one worker a pod decides with pure functions ([`actions`], [`status`]) and performs with the runtime ([`worker`]).

pub mod actions;
mod admission;
mod admit;
pub mod cgroup;
pub mod context;
pub mod env;
mod env_file;
pub mod fields;
pub mod files;
pub mod patch;
pub mod resources;
pub mod spec;
pub mod state;
pub mod status;

mod dispatch;
mod evict;
mod mailbox;
mod mirror;
mod mounts;
mod perform;
mod probing;
mod recall;
mod recover;
mod resize;
pub mod sandbox;
mod start;
pub mod statics;
pub mod stop;
mod worker;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod worker_tests;

pub use dispatch::{Dispatcher, Mailboxes};
pub use mailbox::Evict;
pub use recover::statuses;
pub use start::pull_secrets;
