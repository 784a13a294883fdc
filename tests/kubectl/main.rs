//! The real kubectls against a real cluster: what a user does, and what it prints.

#[path = "../support/mod.rs"]
mod support;

mod apply;
mod command;
mod errors;
mod jobs;
mod python;
mod workload;
