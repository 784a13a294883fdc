//! What the cases about pods share: manifests of busybox pods, and waiting on their statuses and events.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Kubectl, wait_for};

pub const MINUTE: Duration = Duration::from_secs(60);

/// A pod; its containers are of busybox unless they say otherwise, and it ends quickly.
pub fn manifest(name: &str, mut spec: Value) -> Value {
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for (key, value) in [("image", json!("busybox")), ("imagePullPolicy", json!("IfNotPresent"))] {
                if container.get(key).is_none() {
                    container[key] = value;
                }
            }
        }
    }
    if spec.get("terminationGracePeriodSeconds").is_none() {
        spec["terminationGracePeriodSeconds"] = json!(1);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// A container that runs a script.
pub fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "command": ["sh", "-c", script]})
}

/// An object with more fields.
pub fn with(mut object: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

/// Makes a pod, once its namespace can have one.
pub fn make(kubectl: &Kubectl, name: &str, spec: Value) {
    let manifest = manifest(name, spec).to_string();
    wait_for(&format!("the pod {name} to be taken"), MINUTE, || match kubectl.manifest(&["create"], &manifest) {
        Err(error) if error.contains("error looking up service account") => Err(error),
        other => Ok(other.unwrap_or_else(|error| panic!("{manifest}: {error}"))),
    });
}

pub fn get(kubectl: &Kubectl, pod: &str, path: &str) -> String {
    kubectl.jsonpath(&["pod", pod], path)
}

pub fn until(kubectl: &Kubectl, pod: &str, path: &str, expected: &str) {
    until_within(MINUTE, kubectl, pod, path, expected);
}

pub fn until_within(time: Duration, kubectl: &Kubectl, pod: &str, path: &str, expected: &str) {
    wait_for(&format!("{pod}: {path} to be {expected:?}"), time, || {
        let seen = get(kubectl, pod, path);
        if seen == expected {
            Ok(())
        } else {
            Err(format!("{seen:?}; {}; {}", get(kubectl, pod, "{.status}"), events(kubectl, pod)))
        }
    });
}

pub fn until_ready(kubectl: &Kubectl, pod: &str) {
    until(kubectl, pod, "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
}

/// The events about an object of this name, each as `reason: message`.
pub fn events(kubectl: &Kubectl, of: &str) -> String {
    let selector = format!("--field-selector=involvedObject.name={of}");
    kubectl.run(["get", "events", &selector, "-o", "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}"])
}

pub fn until_event(kubectl: &Kubectl, of: &str, words: &str) {
    until_event_within(MINUTE, kubectl, of, words);
}

pub fn until_event_within(time: Duration, kubectl: &Kubectl, of: &str, words: &str) {
    wait_for(&format!("the event {words:?} of {of}"), time, || {
        let seen = events(kubectl, of);
        if seen.contains(words) { Ok(()) } else { Err(seen) }
    });
}

pub fn sh(kubectl: &Kubectl, pod: &str, command: &str) -> String {
    kubectl.run(["exec", pod, "--", "sh", "-c", command])
}

/// The engine's id of a pod's first container.
pub fn container_id(kubectl: &Kubectl, pod: &str) -> String {
    get(kubectl, pod, "{.status.containerStatuses[0].containerID}").trim_start_matches("docker://").to_owned()
}

/// A figure of a pod's cgroup: the file of cgroup v1 with its controller, and that of v2.
pub fn cgroup(uid: &str, controller: &str, legacy: &str, unified: &str) -> String {
    let root = Path::new("/sys/fs/cgroup");
    let pods = ["", "burstable", "besteffort"].map(|class| {
        let dash = if class.is_empty() { String::new() } else { format!("-{class}") };
        let slice = format!("kubepods.slice/kubepods{dash}.slice/kubepods{dash}-pod{}.slice", uid.replace('-', "_"));
        [format!("kubepods/{class}/pod{uid}"), slice.replace("kubepods.slice/kubepods.slice/", "kubepods.slice/")]
    });
    let files =
        pods.iter().flatten().flat_map(|pod| [root.join(controller).join(pod).join(legacy), root.join(pod).join(unified)]);
    let found: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    found.first().unwrap_or_else(|| panic!("no cgroup of {uid}")).trim().to_owned()
}
