//! Pods and container instances for the tables of tests.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::state::PodRuntime;
use crate::cri::{ContainerDetail, ProcessUser, State, labels};

/// The second that tests call now.
pub const NOW: i64 = 1_800_000_000;

pub fn at(offset: i64) -> Timestamp {
    Timestamp::from_second(NOW + offset).unwrap()
}

pub fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    spec["nodeName"] = json!("n1");
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-1", "resourceVersion": "5", "generation": 1},
        "spec": spec}))
    .unwrap()
}

/// How an instance is.
#[derive(Clone, Copy)]
pub enum Is {
    Running,
    /// Exit code, and when it ended relative to now.
    Exited(i32, i64),
    Created,
    CannotRun,
}

pub fn detail(container: &str, attempt: u32, sandbox: &str, is: Is) -> ContainerDetail {
    let is_sandbox = container == "POD";
    let mut all = BTreeMap::from([
        (labels::POD_UID.to_owned(), "uid-1".to_owned()),
        (labels::ATTEMPT.to_owned(), attempt.to_string()),
        (labels::TYPE.to_owned(), if is_sandbox { "podsandbox" } else { "container" }.to_owned()),
    ]);
    if !is_sandbox {
        all.insert(labels::CONTAINER_NAME.to_owned(), container.to_owned());
        all.insert(labels::SANDBOX_ID.to_owned(), sandbox.to_owned());
    }
    let (state, exit_code, finished, error) = match is {
        Is::Running => (State::Running, 0, None, ""),
        Is::Exited(code, offset) => (State::Exited, code, Some(at(offset)), ""),
        Is::Created => (State::Created, 0, None, ""),
        Is::CannotRun => (State::Created, 127, None, "exec: \"nope\": executable file not found in $PATH"),
    };
    let started = !matches!(is, Is::Created | Is::CannotRun);
    ContainerDetail {
        id: format!("{container}-{attempt}"),
        name: format!("k8s_{container}"),
        labels: all,
        state,
        pid: (state == State::Running).then_some(42),
        user: (state == State::Running).then(|| ProcessUser { uid: 1_000, gid: 3_000, groups: vec![3_000, 4_000] }),
        image: "nginx:1.14".to_owned(),
        image_id: "sha256:aa".to_owned(),
        created_at: Some(at(-60)),
        started_at: started.then(|| at(-50)),
        finished_at: finished,
        exit_code,
        oom_killed: exit_code == 137,
        error: error.to_owned(),
        log_path: None,
        tty: false,
    }
}

/// A runtime with a sandbox `POD-0` (running or not) and these instances in it.
pub fn runtime(sandbox: Option<Is>, instances: &[(&str, u32, Is)]) -> PodRuntime {
    let mut runtime = PodRuntime::default();
    if let Some(is) = sandbox {
        runtime.put(detail("POD", 0, "", is));
    }
    for (container, attempt, is) in instances {
        runtime.put(detail(container, *attempt, "POD-0", *is));
    }
    runtime
}
