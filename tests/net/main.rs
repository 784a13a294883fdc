//! Several hosts on one machine: real clusters of several nodes, with cables that can be pulled.

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod hosts;

mod bringup;
mod failure;
mod overlay;
mod policy;
mod promises;
mod rules;
mod services;
