//! Metrics of the work queues, under the names of `client-go`'s workqueue.

use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use crate::rt::metrics::register;

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// The metrics of one queue.
pub(super) struct QueueMetrics {
    pub(super) depth: Gauge,
    pub(super) adds: Counter,
    pub(super) retries: Counter,
    /// Seconds from adding a key to taking it.
    pub(super) waited: Histogram,
    /// Seconds of work on a key.
    pub(super) worked: Histogram,
}

struct Families {
    depth: Family<Labels, Gauge>,
    adds: Family<Labels, Counter>,
    retries: Family<Labels, Counter>,
    waited: Histograms,
    worked: Histograms,
}

fn seconds() -> Histogram {
    Histogram::new([0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0])
}

fn families() -> &'static Families {
    static FAMILIES: OnceLock<Families> = OnceLock::new();
    FAMILIES.get_or_init(|| Families {
        depth: register("workqueue_depth", "Current depth of workqueue", Family::default()),
        adds: register("workqueue_adds", "Total number of adds handled by workqueue", Family::default()),
        retries: register("workqueue_retries", "Total number of retries handled by workqueue", Family::default()),
        waited: register(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested.",
            Family::new_with_constructor(seconds as fn() -> Histogram),
        ),
        worked: register(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes.",
            Family::new_with_constructor(seconds as fn() -> Histogram),
        ),
    })
}

/// The metrics of the queue of a controller.
pub(super) fn of(name: &str) -> QueueMetrics {
    let (families, labels) = (families(), vec![("name", name.to_owned())]);
    QueueMetrics {
        depth: families.depth.get_or_create_owned(&labels),
        adds: families.adds.get_or_create_owned(&labels),
        retries: families.retries.get_or_create_owned(&labels),
        waited: families.waited.get_or_create_owned(&labels),
        worked: families.worked.get_or_create_owned(&labels),
    }
}
