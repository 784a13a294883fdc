//! Real containers and real processes killed: whatever dies, the cluster heals, and nothing is left behind.

#[path = "../support/mod.rs"]
mod support;

mod away;
mod dns;
mod engine;
mod figures;
mod healing;
mod images;
mod join;
mod quickstart;
mod services;
