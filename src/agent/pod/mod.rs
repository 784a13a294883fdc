//! Pods: one worker a pod decides with pure functions ([`actions`], [`status`]) and performs with the runtime ([`worker`]).

pub mod actions;
pub mod cgroup;
pub mod context;
pub mod env;
pub mod fields;
pub mod files;
pub mod patch;
pub mod resources;
pub mod spec;
pub mod state;
pub mod status;

mod dispatch;
mod mailbox;
mod mounts;
mod perform;
mod probing;
mod recall;
mod recover;
pub mod sandbox;
mod start;
mod stop;
mod worker;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod worker_tests;

pub use dispatch::{Dispatcher, Mailboxes};
