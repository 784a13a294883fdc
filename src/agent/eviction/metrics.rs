//! How many pods were evicted, by what for: upstream's `kubelet_evictions`.

use std::sync::OnceLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::rt::metrics;

type Labels = [(&'static str, &'static str); 1];

/// Counts an eviction for a signal, or for a limit of the pod's own.
pub fn count(signal: &'static str) {
    static EVICTIONS: OnceLock<Family<Labels, Counter>> = OnceLock::new();
    let evictions = EVICTIONS.get_or_init(|| {
        let help = "Cumulative number of pod evictions by eviction signal";
        metrics::register("kubelet_evictions", help, Family::default())
    });
    evictions.get_or_create(&[("eviction_signal", signal)]).inc();
}
