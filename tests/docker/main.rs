//! Real containers and real processes killed: whatever dies, the cluster heals, and nothing is left behind.

#[path = "../support/mod.rs"]
mod support;

mod asked;
mod away;
mod badinput;
mod certificates;
mod csi;
mod dns;
mod engine;
mod eviction;
mod faults;
mod figures;
mod healing;
mod host;
mod images;
mod join;
mod podlife;
mod pods;
mod preemption;
mod quickstart;
mod random_outcome;
mod random_pods;
mod random_spec;
mod services;
mod sets;
mod storage;
mod streams;
