//! What the cases in the machine share: one cluster, its kubectl, and pods of busybox.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, Kubectl, wait_for};

pub type Case = fn(&mut World);

pub const MINUTE: Duration = Duration::from_secs(60);

/// The one cluster of the machine.
pub struct World {
    pub cluster: Cluster,
    pub kubectl: Kubectl,
}

impl World {
    pub fn start() -> Self {
        let cluster = Cluster::start_with(&[
            "--system-reserved=cpu=200m,memory=300Mi,pid=1000",
            "--eviction-hard=memory.available<2000Mi",
            "--eviction-pressure-transition-period=5s",
            "--cpu-manager-policy=static",
            "--reserved-cpus=0",
            "--pod-max-pids=500",
        ]);
        cluster.wait_ready();
        let kubectl = cluster.kubectl("1.33");
        wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
        Self { cluster, kubectl }
    }

    pub fn apply(&self, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        self.kubectl.manifest(&["create"], &list).unwrap_or_else(|error| panic!("{list}\n{error}"));
    }

    /// Waits for all of these pods at once.
    pub fn ready(&self, pods: &[&str]) {
        let names = pods.iter().map(|pod| format!("pod/{pod}"));
        let all = ["wait".to_owned(), "--for=condition=Ready".to_owned(), "--timeout=240s".to_owned()].into_iter().chain(names);
        if let Err(error) = self.kubectl.try_run(all) {
            let path = "jsonpath={range .items[*]}{.involvedObject.name} {.reason}: {.message}{\"\\n\"}{end}";
            panic!("{error}\n{}", self.kubectl.run(["get", "events", "-o", path]));
        }
    }

    /// Deletes and waits for the end.
    pub fn delete(&self, kind: &str, names: &[&str]) {
        let all = ["delete", kind, "--timeout=240s"].into_iter().chain(names.iter().copied());
        self.kubectl.run(all);
    }

    pub fn sh(&self, pod: &str, script: &str) -> String {
        self.kubectl.run(["exec", pod, "--", "sh", "-c", script])
    }

    pub fn get(&self, pod: &str, path: &str) -> String {
        self.kubectl.jsonpath(&["pod", pod], path)
    }

    pub fn until(&self, pod: &str, path: &str, expected: &str) {
        wait_for(&format!("{pod}: {path} to be {expected:?}"), MINUTE, || {
            let seen = self.get(pod, path);
            if seen == expected { Ok(()) } else { Err(format!("{seen:?}; {}", self.get(pod, "{.status}"))) }
        });
    }

    /// The events about an object of this name, each as `reason: message`.
    pub fn events(&self, of: &str) -> String {
        let selector = format!("--field-selector=involvedObject.name={of}");
        self.kubectl.run(["get", "events", &selector, "-o", "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}"])
    }

    pub fn until_event(&self, of: &str, words: &str) {
        wait_for(&format!("the event {words:?} of {of}"), MINUTE, || {
            let seen = self.events(of);
            if seen.contains(words) { Ok(()) } else { Err(seen) }
        });
    }

    /// The mounts of which one of the fields contains a word.
    pub fn mounts(word: &str) -> Vec<String> {
        let all = fs::read_to_string("/proc/self/mounts").unwrap();
        all.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}

/// A pod of one busybox container, `c`, that runs a script and then sleeps.
pub fn pod(name: &str, script: &str, container: Value, spec: Value) -> Value {
    let mut one = json!({"name": "c", "image": "busybox", "imagePullPolicy": "Never",
        "command": ["sh", "-c", format!("{script}; trap 'exit 0' TERM; sleep 100000 & wait")]});
    merge(&mut one, container);
    let mut all = json!({"terminationGracePeriodSeconds": 2, "containers": [one]});
    merge(&mut all, spec);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": all})
}

fn merge(object: &mut Value, more: Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
}

/// A file's text without the newline at its end.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}
