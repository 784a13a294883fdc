//! NodeResourcesFit: what a pod asks for must be free.

use super::{Cycle, Filter, HelpedBy, NodeInfo, Reason};
use crate::api::quantity::{Format, Quantity};
use crate::scheduler::resources::Resources;

pub(super) const FILTER: Filter =
    Filter { name: "NodeResourcesFit", passes, explain, helped_by: HelpedBy::GonePods, yields_to_removal: fits_when_empty };

fn passes(cycle: &Cycle<'_>, node: &NodeInfo) -> bool {
    has_room(cycle, node, &node.requested)
}

/// A node that is too small stays so, whoever leaves it.
fn fits_when_empty(cycle: &Cycle<'_>, node: &NodeInfo) -> bool {
    has_room(cycle, node, &Resources::default())
}

fn has_room(cycle: &Cycle<'_>, node: &NodeInfo, used: &Resources) -> bool {
    let (wanted, has) = (&cycle.pod.requests, &node.allocatable);
    let fits = |wanted: i64, has: i64, used: i64| wanted == 0 || wanted <= has - used;
    fits(wanted.pods, has.pods, used.pods)
        && fits(wanted.cpu_millis, has.cpu_millis, used.cpu_millis)
        && fits(wanted.memory_bytes, has.memory_bytes, used.memory_bytes)
        && fits(wanted.ephemeral_bytes, has.ephemeral_bytes, used.ephemeral_bytes)
        && wanted.extended.iter().all(|(name, amount)| fits(*amount, has.extended(name), used.extended(name)))
}

fn explain(cycle: &Cycle<'_>, node: &NodeInfo) -> Vec<Reason> {
    let (wanted, has, used) = (&cycle.pod.requests, &node.allocatable, &node.requested);
    let mut reasons = Vec::new();
    if wanted.pods > has.pods - used.pods {
        reasons.extend(Reason::new("Too many pods", format!("runs its limit of {} pods", has.pods)));
    }
    let named = [
        ("cpu", "CPU", wanted.cpu_millis, has.cpu_millis - used.cpu_millis),
        ("memory", "memory", wanted.memory_bytes, has.memory_bytes - used.memory_bytes),
        ("ephemeral-storage", "ephemeral storage", wanted.ephemeral_bytes, has.ephemeral_bytes - used.ephemeral_bytes),
    ];
    let extended =
        wanted.extended.iter().map(|(name, amount)| (&**name, &**name, *amount, has.extended(name) - used.extended(name)));
    for (name, words, wanted, free) in named.into_iter().chain(extended) {
        if wanted > 0 && wanted > free {
            let lack = amount(name, wanted - free);
            reasons.extend(Reason::new(format!("Insufficient {name}"), format!("lacks {lack} {words}")));
        }
    }
    reasons
}

fn amount(name: &str, number: i64) -> String {
    let quantity = match name {
        "cpu" => Quantity::from_milli(number, Format::DecimalSi),
        "memory" | "ephemeral-storage" => Quantity::new(number, Format::BinarySi),
        _ => Quantity::new(number, Format::DecimalSi),
    };
    quantity.to_typed().0
}
