//! What is done next, as a table.

use serde_json::{Value, json};

use super::super::samples::{Is, at, pod, runtime};
use super::super::state::{RESTART_BACKOFF_CAP, Records, RestartBackoff, Unhealthy, Waiting, members};
use super::*;

struct Case {
    what: &'static str,
    spec: Value,
    sandbox: Option<Is>,
    instances: Vec<(&'static str, u32, Is)>,
    records: Records,
    expected: &'static str,
}

fn attached() -> Records {
    Records { network_ready: Some("POD-0".to_owned()), ..Records::default() }
}

fn plain() -> Value {
    json!({"containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]})
}

fn with_init(policy: &str) -> Value {
    json!({"restartPolicy": policy,
        "initContainers": [{"name": "i1", "image": "i"}, {"name": "s", "image": "i", "restartPolicy": "Always"}, {"name": "i2", "image": "i"}],
        "containers": [{"name": "a", "image": "i"}]})
}

/// A plan in one line.
fn words(plan: &Plan) -> String {
    let mut words = Vec::new();
    words.extend(plan.sandbox.map(|attempt| format!("sandbox {attempt}")));
    words.extend(plan.start.iter().map(|start| format!("start {} {}", start.container, start.attempt)));
    words.extend(plan.kill.iter().map(|kill| {
        if kill.after.is_empty() {
            format!("kill {}", kill.id)
        } else {
            format!("kill {} after {}", kill.id, kill.after.join(" "))
        }
    }));
    words.extend(plan.remove.iter().map(|id| format!("remove {id}")));
    words.extend(plan.teardown.then(|| "teardown".to_owned()));
    words.extend(plan.wake_at.map(|wake| format!("wake {}", wake.as_second() - at(0).as_second())));
    words.join(", ")
}

fn check(case: &Case, desire: Desire) {
    let pod = pod(case.spec.clone());
    let members = members(&pod);
    let runtime = runtime(case.sandbox, &case.instances);
    let situation = Situation {
        pod: &pod,
        members: &members,
        desire,
        runtime: &runtime,
        records: &case.records,
        in_flight: &BTreeSet::new(),
        sandbox_in_flight: false,
        now: at(0),
    };
    assert_eq!(words(&plan(&situation)), case.expected, "{}", case.what);
}

fn case(what: &'static str, spec: Value, instances: &[(&'static str, u32, Is)], expected: &'static str) -> Case {
    Case { what, spec, sandbox: Some(Is::Running), instances: instances.to_vec(), records: attached(), expected }
}

#[test]
fn plain_pods() {
    let up = [("a", 0, Is::Running), ("b", 0, Is::Running)];
    let table = [
        Case { sandbox: None, ..case("new", plain(), &[], "sandbox 0, start a 0, start b 0") },
        case("all runs", plain(), &up, ""),
        case("one ended", plain(), &[("a", 0, Is::Running), ("b", 0, Is::Exited(1, -1))], "start b 1"),
        case("half a start", plain(), &[("a", 0, Is::Running), ("b", 3, Is::Created)], "start b 3"),
        case("could not start", plain(), &[("a", 0, Is::Running), ("b", 3, Is::CannotRun)], "start b 4"),
        case(
            "old instances go",
            plain(),
            &[("a", 0, Is::Exited(1, -9)), ("a", 1, Is::Exited(1, -5)), ("a", 2, Is::Running), ("b", 0, Is::Running)],
            "remove a-0",
        ),
        Case { records: Records::default(), ..case("agent restarted", plain(), &up, "sandbox 0") },
        Case { sandbox: Some(Is::Exited(137, -1)), ..case("sandbox died", plain(), &up, "kill a-0, kill b-0") },
        Case {
            sandbox: Some(Is::Exited(137, -1)),
            ..case(
                "sandbox died, all ended",
                plain(),
                &[("a", 0, Is::Exited(137, -1)), ("b", 1, Is::Exited(137, -1))],
                "sandbox 1, start a 1, start b 2, remove POD-0",
            )
        },
    ];
    for row in &table {
        check(row, Desire::Run);
    }
}

#[test]
fn restart_policies() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "i"}]});
    let table = [
        ("Always", 0, "start a 1"),
        ("Always", 1, "start a 1"),
        ("OnFailure", 0, ""),
        ("OnFailure", 2, "start a 1"),
        ("Never", 1, ""),
    ];
    for (policy, code, expected) in table {
        check(&case("restart policy", spec(policy), &[("a", 0, Is::Exited(code, -1))], expected), Desire::Run);
    }
}

#[test]
fn back_offs_hold() {
    let spec = json!({"containers": [{"name": "a", "image": "i"}]});
    let ended = [("a", 1, Is::Exited(1, -4))];
    let mut records = attached();
    let delay = std::time::Duration::from_secs(10);
    records.backoff.insert("a".to_owned(), RestartBackoff { delay, updated_at: at(-20) });
    let held = Case { records: records.clone(), ..case("held back", spec.clone(), &ended, "wake 6") };
    check(&held, Desire::Run);
    let quiet = i64::try_from(RESTART_BACKOFF_CAP.as_secs()).unwrap() * 2 + 10;
    records.backoff.insert("a".to_owned(), RestartBackoff { delay, updated_at: at(-quiet) });
    check(&Case { records, ..case("ran long", spec.clone(), &ended, "start a 2") }, Desire::Run);
    let mut records = attached();
    let waiting = Waiting { reason: "ErrImagePull".to_owned(), message: String::new(), retry_at: at(7) };
    records.waiting.insert("a".to_owned(), waiting);
    check(&Case { records, ..case("image fails", spec.clone(), &[], "wake 7") }, Desire::Run);
    let mut records = attached();
    let unhealthy = Unhealthy { id: "a-1".to_owned(), message: "m".to_owned(), grace_seconds: None };
    records.unhealthy.insert("a".to_owned(), unhealthy);
    check(&Case { records, ..case("unhealthy", spec, &[("a", 1, Is::Running)], "kill a-1") }, Desire::Run);
}

#[test]
fn init_containers_go_first() {
    let done = |name| (name, 0, Is::Exited(0, -5));
    let table = [
        case("first", with_init("Always"), &[], "start i1 0"),
        Case {
            records: Records::default(),
            ..case("agent restarted while the pod initializes", with_init("Always"), &[done("i1")], "sandbox 0, start s 0")
        },
        case("first runs", with_init("Always"), &[("i1", 0, Is::Running)], ""),
        case("first failed", with_init("Always"), &[("i1", 0, Is::Exited(1, -5))], "start i1 1"),
        case("first failed for good", with_init("Never"), &[("i1", 0, Is::Exited(1, -5))], ""),
        case("sidecar next", with_init("Always"), &[done("i1")], "start s 0"),
        case("sidecar runs", with_init("Always"), &[done("i1"), ("s", 0, Is::Running)], "start i2 0"),
        case("all done", with_init("Always"), &[done("i1"), ("s", 0, Is::Running), done("i2")], "start a 0"),
        case(
            "sidecar ended later",
            with_init("Never"),
            &[done("i1"), ("s", 0, Is::Exited(0, -1)), done("i2"), ("a", 0, Is::Running)],
            "start s 1",
        ),
        Case {
            sandbox: Some(Is::Exited(137, -1)),
            ..case(
                "a new sandbox begins anew",
                with_init("Always"),
                &[done("i1"), ("s", 0, Is::Exited(137, -1)), done("i2"), ("a", 0, Is::Exited(137, -1))],
                "sandbox 1, start i1 1, remove POD-0",
            )
        },
    ];
    for row in &table {
        check(row, Desire::Run);
    }
}

#[test]
fn stopping() {
    let all = [("i1", 0, Is::Exited(0, -5)), ("s", 0, Is::Running), ("a", 0, Is::Running)];
    let table = [
        case("application first", with_init("Always"), &all, "kill a-0, kill s-0 after a"),
        case("sidecars then", with_init("Always"), &[("s", 0, Is::Running), ("a", 0, Is::Exited(0, 0))], "kill s-0"),
        case(
            "sidecars in reverse",
            json!({"initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
                "containers": [{"name": "a"}]}),
            &[("s1", 0, Is::Running), ("s2", 0, Is::Running), ("a", 0, Is::Running)],
            "kill a-0, kill s1-0 after s2 a, kill s2-0 after a",
        ),
        case("all ended", plain(), &[("a", 0, Is::Exited(0, 0))], "teardown"),
        Case { sandbox: None, ..case("never ran", plain(), &[], "teardown") },
    ];
    for row in &table {
        check(row, Desire::Stop);
    }
}
