//! The figures of the project, each beside its floor or peer: `cargo bench` runs all, `cargo bench -- NAME…` some.
//!
//! A line is: name, value, unit, what it is compared with, the ratio. Durable means on disk, TLS and authorization are on, and the
//! load generator runs on the same cores: so the server's CPU time and memory stand beside each figure.

mod api;
mod burst;
mod client;
#[path = "../net/cluster.rs"]
mod cluster;
mod dns;
#[path = "../net/hosts.rs"]
mod hosts;
mod net;
mod pods;
mod proxy;
mod server;
#[path = "../support/mod.rs"]
mod support;

use server::Server;

/// Name of a group of figures, and what measures it.
type Group = (&'static str, fn(&Runtime));

const GROUPS: &[Group] = &[
    ("size", server::size),
    ("start", server::start),
    ("idle", server::idle),
    ("api", api::run),
    ("pods", pods::run),
    ("burst", burst::run),
    ("proxy", proxy::run),
    ("dns", dns::run),
    ("net", net::run),
];

pub struct Runtime(tokio::runtime::Runtime);

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let runtime = Runtime(tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime"));
    println!("{:<44} {:>12} {:<10} {:<34} ratio", "figure", "value", "unit", "compared with");
    for (_, measure) in GROUPS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name)) {
        measure(&runtime);
    }
}

/// One line: `peer` is what it is compared with and that value in the same unit.
pub fn figure(name: &str, value: f64, unit: &str, peer: Option<(&str, f64)>) {
    let (text, ratio) = match peer {
        Some((what, peer)) => (format!("{what}: {}", short(peer)), format!("{:.2}", value / peer)),
        None => (String::new(), String::new()),
    };
    println!("{name:<44} {:>12} {unit:<10} {text:<34} {ratio}", short(value));
}

fn short(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

/// The median, with minimum and maximum said where they differ much.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
