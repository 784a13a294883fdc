//! Real containers and real processes killed: whatever dies, the cluster heals, and nothing is left behind.

#[path = "../support/mod.rs"]
mod support;

mod engine;
mod healing;
mod join;
mod quickstart;
mod storage;
