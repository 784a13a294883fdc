//! `/metrics/resource` and `/metrics/cadvisor` in Prometheus' text format, with upstream's names and labels.

use std::fmt::Write;

use super::cgroup::CpuBounds;
use super::{ContainerReading, NodeReading, PodReading};

/// A family: its name, type, help, and samples of (labels, value).
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Vec<(String, f64)>,
}

impl Family {
    const fn new(name: &'static str, kind: &'static str, help: &'static str) -> Self {
        Self { name, kind, help, samples: Vec::new() }
    }

    fn with(mut self, samples: impl Iterator<Item = (String, f64)>) -> Self {
        self.samples.extend(samples);
        self
    }
}

fn render(families: &[Family], at_ms: Option<i64>) -> String {
    let mut text = String::new();
    for family in families.iter().filter(|family| !family.samples.is_empty()) {
        // Writing to a text does not fail.
        writeln!(text, "# HELP {0} {1}\n# TYPE {0} {2}", family.name, family.help, family.kind).ok();
        for (labels, value) in &family.samples {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            let at = at_ms.map_or_else(String::new, |at| format!(" {at}"));
            writeln!(text, "{}{labels} {value}{at}", family.name).ok();
        }
    }
    text
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// A label value, escaped as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn pod_labels(one: &PodReading) -> String {
    let metadata = &one.pod.metadata;
    let text = |value: &Option<String>| escaped(value.as_deref().unwrap_or(""));
    format!("namespace=\"{}\",pod=\"{}\"", text(&metadata.namespace), text(&metadata.name))
}

fn containers(reading: &NodeReading) -> impl Iterator<Item = (&PodReading, &ContainerReading)> {
    reading.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
}

/// CPU and memory alone, for metrics-server and the like.
pub fn resource(reading: &NodeReading) -> String {
    let label =
        |(pod, one): (&PodReading, &ContainerReading)| format!("container=\"{}\",{}", escaped(&one.name), pod_labels(pod));
    let of_containers = |value: fn(&ContainerReading) -> f64| {
        containers(reading).map(move |(pod, one)| (label((pod, one)), value(one))).collect::<Vec<_>>().into_iter()
    };
    let of_pods = |value: fn(&PodReading) -> f64| {
        reading.pods.iter().map(move |pod| (pod_labels(pod), value(pod))).collect::<Vec<_>>().into_iter()
    };
    let of_node = |value: f64| std::iter::once((String::new(), value));
    let node = reading.reading.usage;
    let started = containers(reading).filter_map(|(pod, one)| Some((label((pod, one)), one.started_at?.as_second() as f64)));
    let families = [
        Family::new(
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        )
        .with(of_containers(|one| seconds(one.reading.usage.cpu_ns))),
        Family::new("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes")
            .with(of_containers(|one| one.reading.usage.working_set_bytes as f64)),
        Family::new("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds")
            .with(started),
        Family::new("container_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the container swap usage in bytes.")
            .with(of_containers(|one| one.reading.usage.swap_bytes as f64)),
        Family::new(
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        )
        .with(of_node(seconds(node.cpu_ns))),
        Family::new("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes")
            .with(of_node(node.working_set_bytes as f64)),
        Family::new("node_swap_usage_bytes", "gauge", "[ALPHA] Current swap usage of the node in bytes.")
            .with(of_node(node.swap_bytes as f64)),
        Family::new("pod_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds")
            .with(of_pods(|pod| seconds(pod.reading.usage.cpu_ns))),
        Family::new("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes")
            .with(of_pods(|pod| pod.reading.usage.working_set_bytes as f64)),
        Family::new("pod_swap_usage_bytes", "gauge", "[ALPHA] Current amount of the pod swap usage in bytes.")
            .with(of_pods(|pod| pod.reading.usage.swap_bytes as f64)),
    ];
    let error = Family::new(
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
    )
    .with(of_node(0.0));
    render(&families, Some(reading.reading.at.as_millisecond())) + &render(&[error], None)
}

/// What dashboards made for cadvisor ask for. The whole pod is the row with an empty `container`.
pub fn cadvisor(reading: &NodeReading) -> String {
    let row = |pod: &PodReading, one: Option<&ContainerReading>| {
        let (name, id, image) = one.map_or(("", "", ""), |one| (one.name.as_str(), one.id.as_str(), one.image.as_str()));
        format!(
            "container=\"{}\",id=\"{}\",image=\"{}\",name=\"{id}\",{}",
            escaped(name),
            escaped(one.map_or(&pod.cgroup, |one| &one.cgroup)),
            escaped(image),
            pod_labels(pod)
        )
    };
    let rows: Vec<(String, super::Usage)> = reading
        .pods
        .iter()
        .flat_map(|pod| {
            let own = std::iter::once((row(pod, None), pod.reading.usage));
            own.chain(pod.containers.iter().map(|one| (row(pod, Some(one)), one.reading.usage))).collect::<Vec<_>>()
        })
        .collect();
    let gauge = |name, help, value: fn(&super::Usage) -> u64| {
        Family::new(name, "gauge", help).with(rows.iter().map(|(labels, usage)| (labels.clone(), value(usage) as f64)))
    };
    let interfaces = |name, help, value: fn(&crate::network::Traffic) -> u64| {
        Family::new(name, "counter", help).with(reading.pods.iter().filter_map(|pod| {
            let traffic = pod.traffic.as_ref()?;
            Some((format!("{},interface=\"eth0\"", row(pod, None)), value(traffic) as f64))
        }))
    };
    let cpu = rows.iter().map(|(labels, usage)| (format!("{labels},cpu=\"total\""), seconds(usage.cpu_ns)));
    let started = containers(reading).filter_map(|(pod, one)| Some((row(pod, Some(one)), one.started_at?.as_second() as f64)));
    let families = [
        Family::new("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.").with(cpu),
        gauge(
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |usage| usage.memory_bytes,
        ),
        gauge("container_memory_working_set_bytes", "Current working set in bytes.", |usage| usage.working_set_bytes),
        gauge("container_memory_rss", "Size of RSS in bytes.", |usage| usage.rss_bytes),
        gauge("container_memory_cache", "Number of bytes of page cache memory.", |usage| usage.cache_bytes),
        gauge("container_memory_swap", "Container swap usage in bytes.", |usage| usage.swap_bytes),
        gauge("container_spec_memory_limit_bytes", "Memory limit for the container.", |usage| {
            usage.memory_limit_bytes.unwrap_or(0)
        }),
        gauge("container_processes", "Number of processes running inside the container.", |usage| usage.processes),
        interfaces("container_network_receive_bytes_total", "Cumulative count of bytes received", |traffic| traffic.rx_bytes),
        interfaces("container_network_receive_packets_total", "Cumulative count of packets received", |traffic| {
            traffic.rx_packets
        }),
        interfaces(
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |traffic| traffic.rx_errors,
        ),
        interfaces("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |traffic| traffic.tx_bytes),
        interfaces("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |traffic| {
            traffic.tx_packets
        }),
        interfaces(
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |traffic| traffic.tx_errors,
        ),
        Family::new("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.")
            .with(started),
    ];
    let at = Some(reading.reading.at.as_millisecond());
    render(&families, at) + &render(&cpu_bounds(&rows), at) + &render(&machine(reading), None)
}

/// What keeps each row from the CPU; a row without a limit is never throttled.
fn cpu_bounds(rows: &[(String, super::Usage)]) -> [Family; 6] {
    let family = |name, kind, help, value: fn(&CpuBounds) -> Option<f64>| {
        let samples = rows.iter().filter_map(|(labels, usage)| Some((labels.clone(), value(&usage.cpu)?)));
        Family::new(name, kind, help).with(samples)
    };
    let periods = "Number of elapsed enforcement period intervals.";
    let throttled = "Total time duration the container has been throttled.";
    [
        family("container_spec_cpu_shares", "gauge", "CPU share of the container.", |cpu| Some(cpu.shares as f64)),
        family("container_spec_cpu_period", "gauge", "CPU period of the container.", |cpu| Some(cpu.period_us as f64)),
        family("container_spec_cpu_quota", "gauge", "CPU quota of the container.", |cpu| Some(cpu.quota_us? as f64)),
        family("container_cpu_cfs_periods_total", "counter", periods, |cpu| cpu.quota_us.map(|_| cpu.periods as f64)),
        family("container_cpu_cfs_throttled_periods_total", "counter", "Number of throttled period intervals.", |cpu| {
            cpu.quota_us.map(|_| cpu.throttled_periods as f64)
        }),
        family("container_cpu_cfs_throttled_seconds_total", "counter", throttled, |cpu| {
            cpu.quota_us.map(|_| seconds(cpu.throttled_ns))
        }),
    ]
}

fn machine(reading: &NodeReading) -> [Family; 2] {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let once = |value: f64| std::iter::once((String::new(), value));
    let memory = reading.reading.usage.memory_limit_bytes.unwrap_or(0);
    [
        Family::new("machine_cpu_cores", "gauge", "Number of logical CPU cores.").with(once(cores as f64)),
        Family::new("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.").with(once(memory as f64)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_without_samples_are_left_out_and_labels_escaped() {
        let families = [
            Family::new("a_total", "counter", "A."),
            Family::new("b", "gauge", "B.").with(std::iter::once((format!("x=\"{}\"", escaped("a\"b\\")), 1.5))),
        ];
        assert_eq!(render(&families, Some(7)), "# HELP b B.\n# TYPE b gauge\nb{x=\"a\\\"b\\\\\"} 1.5 7\n");
    }
}
