//! `/stats/summary`, in upstream's form.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::filesystem::Space;
use super::{ContainerReading, NodeReading, PodReading, Reading};
use crate::network::Traffic;

/// The summary; `is_short` leaves out everything but CPU and memory.
pub fn summary(reading: &NodeReading, is_short: bool) -> Value {
    let at = reading.reading.at;
    let mut node = json!({
        "nodeName": reading.node,
        "startTime": time(reading.booted_at),
        "cpu": cpu(&reading.reading),
        "memory": memory(&reading.reading),
    });
    if !is_short {
        node["swap"] = json!({"time": time(at), "swapUsageBytes": reading.reading.usage.swap_bytes});
        node["fs"] = space(at, reading.data_space);
        node["runtime"] = json!({"imageFs": space(at, reading.image_space), "containerFs": space(at, reading.image_space)});
        node["network"] = network(at, &reading.traffic);
        node["rlimit"] = rlimit(at);
    }
    let pods: Vec<Value> = reading.pods.iter().map(|one| pod(one, is_short)).collect();
    json!({"node": node, "pods": pods})
}

fn time(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn cpu(reading: &Reading) -> Value {
    json!({"time": time(reading.at), "usageNanoCores": reading.nano_cores, "usageCoreNanoSeconds": reading.usage.cpu_ns})
}

fn memory(reading: &Reading) -> Value {
    let usage = reading.usage;
    let mut memory = json!({
        "time": time(reading.at),
        "usageBytes": usage.memory_bytes,
        "workingSetBytes": usage.working_set_bytes,
        "rssBytes": usage.rss_bytes,
        "pageFaults": usage.page_faults,
        "majorPageFaults": usage.major_page_faults,
    });
    if let Some(limit) = usage.memory_limit_bytes {
        memory["availableBytes"] = json!(limit.saturating_sub(usage.working_set_bytes));
    }
    memory
}

fn space(at: Timestamp, space: Space) -> Value {
    json!({
        "time": time(at),
        "availableBytes": space.available_bytes,
        "capacityBytes": space.capacity_bytes,
        "usedBytes": space.used_bytes,
        "inodesFree": space.inodes_free,
        "inodes": space.inodes,
        "inodesUsed": space.inodes.saturating_sub(space.inodes_free),
    })
}

/// The counters of interfaces; the first is the default one.
fn network(at: Timestamp, traffic: &[Traffic]) -> Value {
    let interface = |one: &Traffic| json!({"name": one.interface, "rxBytes": one.rx_bytes, "rxErrors": one.rx_errors, "txBytes": one.tx_bytes, "txErrors": one.tx_errors});
    let interfaces: Vec<Value> = traffic.iter().map(interface).collect();
    let mut network = interfaces.first().and_then(|first| first.as_object().cloned()).unwrap_or_else(Map::new);
    network.insert("time".to_owned(), json!(time(at)));
    network.insert("interfaces".to_owned(), Value::Array(interfaces));
    Value::Object(network)
}

fn rlimit(at: Timestamp) -> Value {
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let running = std::fs::read_to_string("/proc/loadavg").ok();
    let running = running.and_then(|text| text.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok());
    json!({"time": time(at), "maxpid": number("/proc/sys/kernel/pid_max"), "curproc": running})
}

fn pod(one: &PodReading, is_short: bool) -> Value {
    let metadata = &one.pod.metadata;
    let started = one.pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|at| time(at.0));
    let containers: Vec<Value> = one.containers.iter().map(|one| container(one, is_short)).collect();
    let mut pod = json!({
        "podRef": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "startTime": started,
        "containers": containers,
        "cpu": cpu(&one.reading),
        "memory": memory(&one.reading),
    });
    if !is_short {
        pod["process_stats"] = json!({"process_count": one.reading.usage.processes});
        pod["swap"] = json!({"time": time(one.reading.at), "swapUsageBytes": one.reading.usage.swap_bytes});
        if let Some(traffic) = &one.traffic {
            pod["network"] = network(one.reading.at, std::slice::from_ref(traffic));
        }
    }
    pod
}

fn container(one: &ContainerReading, is_short: bool) -> Value {
    let mut container = json!({
        "name": one.name,
        "startTime": one.started_at.map(time),
        "cpu": cpu(&one.reading),
        "memory": memory(&one.reading),
    });
    if !is_short {
        container["logs"] = json!({"time": time(one.reading.at), "usedBytes": one.log_bytes});
        container["swap"] = json!({"time": time(one.reading.at), "swapUsageBytes": one.reading.usage.swap_bytes});
    }
    container
}
