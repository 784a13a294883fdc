//! Metrics: one Prometheus registry a process; each module registers its own families under Kubernetes' names.

use std::sync::OnceLock;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry};

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(|| Mutex::new(Registry::default()))
}

/// Registers a metric family once, usually from a `static OnceLock`, and hands it back.
///
/// `name` is without the `_total` suffix of counters, which the encoder adds.
pub fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    registry().lock().register(name, help, metric.clone());
    metric
}

/// All metrics in the OpenMetrics text format.
///
/// # Errors
/// Only when formatting fails, which it does not for an in-memory string.
pub fn render() -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    encode(&mut text, &registry().lock())?;
    Ok(text)
}
