//! `metrics.k8s.io`: what nodes and pods use. Its objects are answers, made when they are asked for and never stored; their form is
//! that of upstream's `k8s.io/metrics/pkg/apis/metrics/v1beta1`, which has no generated struct here.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::Object;
use crate::api::kind::{Column, Kind, Names, Scope, Verb};

use super::print;

/// The group that `kubectl top` and autoscalers look for.
pub const GROUP: &str = "metrics.k8s.io";

/// What nodes use.
pub static NODE_METRICS: Metrics = Metrics::new("NodeMetrics", "nodes", "nodemetrics", "metrics.k8s.io/nodes", Scope::Cluster);
/// What the containers of pods use.
pub static POD_METRICS: Metrics = Metrics::new("PodMetrics", "pods", "podmetrics", "metrics.k8s.io/pods", Scope::Namespaced);

const COLUMNS: &[Column] = &[Column::NAME, Column::text("CPU"), Column::text("Memory"), Column::text("Window")];

/// One of the two kinds.
#[derive(Clone, Copy)]
pub struct Metrics {
    names: Names,
    bucket: &'static str,
}

impl Metrics {
    const fn new(kind: &'static str, plural: &'static str, singular: &'static str, bucket: &'static str, scope: Scope) -> Self {
        let names = Names { group: GROUP, version: "v1beta1", kind, plural, singular, short: &[], categories: &[], scope };
        Self { names, bucket }
    }
}

impl Kind for Metrics {
    fn names(&self) -> &Names {
        &self.names
    }

    fn verbs(&self) -> &[Verb] {
        &[Verb::Get, Verb::List]
    }

    fn bucket(&self) -> &'static str {
        self.bucket
    }

    fn schema(&self) -> Option<&'static str> {
        None
    }

    fn columns(&self) -> &[Column] {
        COLUMNS
    }

    fn row(&self, object: &Object, now: Timestamp) -> Vec<Value> {
        let mut cells = print::plain_row(object, now, &[Column::NAME]);
        let of_node = object.get(&["usage"]);
        let of_containers = object.get(&["containers"]).and_then(Value::as_array).into_iter().flatten();
        let usages: Vec<&Value> =
            of_node.into_iter().chain(of_containers.filter_map(|container| container.get("usage"))).collect();
        let sum = |name: &str, unit: &str| {
            let amounts = usages.iter().filter_map(|usage| usage.get(name)?.as_str()?.strip_suffix(unit)?.parse::<u64>().ok());
            Value::String(format!("{}{unit}", amounts.sum::<u64>()))
        };
        cells.extend([sum("cpu", "n"), sum("memory", "Ki"), object.str_at(&["window"]).unwrap_or("").into()]);
        cells
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_added_up() {
        let object = json!({"metadata": {"name": "p"}, "window": "15s", "containers": [
            {"usage": {"cpu": "5n", "memory": "7Ki"}}, {"usage": {"cpu": "6n", "memory": "1Ki"}},
        ]});
        let row = POD_METRICS.row(&Object(object.as_object().unwrap().clone()), Timestamp::UNIX_EPOCH);
        assert_eq!(row, [json!("p"), json!("11n"), json!("8Ki"), json!("15s")]);
    }
}
