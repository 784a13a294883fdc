//! The status of pods, as tables.

use serde_json::{Value, json};

use super::super::samples::{Is, at, detail, pod, runtime};
use super::super::state::{ProbeState, RestartBackoff, Waiting, members};
use super::*;

fn attached() -> Records {
    Records { network_ready: Some("POD-0".to_owned()), pod_ip: Some([10, 42, 0, 2].into()), ..Records::default() }
}

fn status(spec: &Value, sandbox: Option<Is>, instances: &[(&str, u32, Is)], records: &Records, is_terminal: bool) -> PodStatus {
    let pod = pod(spec.clone());
    let members = members(&pod);
    let runtime = runtime(sandbox, instances);
    compute(&Observation {
        pod: &pod,
        members: &members,
        runtime: &runtime,
        records,
        starting: &Default::default(),
        resizes: &Default::default(),
        host_ip: [192, 0, 2, 1].into(),
        has_recursive_read_only: false,
        started_at: at(-100),
        ended: None,
        is_terminal,
        now: at(0),
    })
}

fn one(policy: &str) -> Value {
    json!({"restartPolicy": policy, "containers": [{"name": "web", "image": "nginx:1.14"}]})
}

fn ready(status: &PodStatus) -> (String, String) {
    let conditions = status.conditions.as_ref().unwrap();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
    (ready.status.clone(), ready.reason.clone().unwrap_or_default())
}

#[test]
fn phases() {
    let init = json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "i"}],
        "containers": [{"name": "web", "image": "nginx:1.14"}]});
    let ruled = json!({"restartPolicy": "Never", "containers": [{"name": "web", "image": "nginx:1.14", "restartPolicy": "Never",
        "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]}]});
    let table: [(&str, Value, Vec<(&str, u32, Is)>, bool, &str, &str); 14] = [
        ("a rule starts it again", ruled.clone(), vec![("web", 0, Is::Exited(42, -1))], false, "Running", "ContainersNotReady"),
        ("no rule does", ruled, vec![("web", 0, Is::Exited(7, -1))], false, "Failed", "PodFailed"),
        ("new", one("Always"), vec![], false, "Pending", "ContainersNotReady"),
        ("runs", one("Always"), vec![("web", 0, Is::Running)], false, "Running", ""),
        ("ended, starts again", one("Always"), vec![("web", 0, Is::Exited(0, -1))], false, "Running", "ContainersNotReady"),
        ("failed, starts again", one("OnFailure"), vec![("web", 0, Is::Exited(1, -1))], false, "Running", "ContainersNotReady"),
        ("succeeded", one("OnFailure"), vec![("web", 0, Is::Exited(0, -1))], false, "Succeeded", "PodCompleted"),
        ("succeeded", one("Never"), vec![("web", 0, Is::Exited(0, -1))], false, "Succeeded", "PodCompleted"),
        ("failed", one("Never"), vec![("web", 0, Is::Exited(1, -1))], false, "Failed", "PodFailed"),
        ("stopped", one("Always"), vec![("web", 0, Is::Exited(137, -1))], true, "Failed", "PodFailed"),
        ("stopped well", one("Always"), vec![("web", 0, Is::Exited(0, -1))], true, "Succeeded", "PodCompleted"),
        ("initializes", init.clone(), vec![("i", 0, Is::Running)], false, "Pending", "ContainersNotReady"),
        ("init failed", init.clone(), vec![("i", 0, Is::Exited(1, -1))], false, "Failed", "PodFailed"),
        ("init done", init, vec![("i", 0, Is::Exited(0, -9)), ("web", 0, Is::Running)], false, "Running", ""),
    ];
    for (what, spec, instances, is_terminal, phase, reason) in table {
        let status = status(&spec, Some(Is::Running), &instances, &attached(), is_terminal);
        assert_eq!(status.phase.as_deref(), Some(phase), "{what}");
        assert_eq!(ready(&status).1, reason, "{what}");
    }
}

/// State, last state and restarts of the container `web`, in short.
fn container(status: &PodStatus) -> (String, String, i32) {
    let web = status.container_statuses.as_ref().unwrap().iter().find(|status| status.name == "web").unwrap();
    let words = |state: Option<&ContainerState>| match state {
        Some(ContainerState { waiting: Some(waiting), .. }) => {
            format!("{}: {}", waiting.reason.clone().unwrap_or_default(), waiting.message.clone().unwrap_or_default())
        }
        Some(ContainerState { running: Some(_), .. }) => "running".to_owned(),
        Some(ContainerState { terminated: Some(ended), .. }) => {
            format!("{} {}", ended.reason.clone().unwrap_or_default(), ended.exit_code)
        }
        _ => String::new(),
    };
    (words(web.state.as_ref()), words(web.last_state.as_ref()), web.restart_count)
}

#[test]
fn states_of_a_container() {
    let init = json!({"initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "web", "image": "i"}]});
    let mut crashing = attached();
    let delay = std::time::Duration::from_secs(10);
    crashing.backoff.insert("web".to_owned(), RestartBackoff { delay, updated_at: at(-20) });
    let mut pulling = attached();
    let message = "pull access denied".to_owned();
    pulling.waiting.insert("web".to_owned(), Waiting { reason: "ErrImagePull".to_owned(), message, retry_at: at(1) });
    let always = one("Always");
    let crash_words = "CrashLoopBackOff: back-off 10s restarting failed container=web pod=web_default(uid-1)";
    let table: [(&Value, Vec<(&str, u32, Is)>, &Records, (&str, &str, i32)); 9] = [
        (&always, vec![], &attached(), ("ContainerCreating: ", "", 0)),
        (&init, vec![], &attached(), ("PodInitializing: ", "", 0)),
        (&always, vec![], &pulling, ("ErrImagePull: pull access denied", "", 0)),
        (&always, vec![("web", 0, Is::Running)], &attached(), ("running", "", 0)),
        (&always, vec![("web", 0, Is::Exited(2, -9)), ("web", 1, Is::Running)], &attached(), ("running", "Error 2", 1)),
        (&always, vec![("web", 1, Is::Exited(137, -1))], &attached(), ("OOMKilled 137", "", 1)),
        (&always, vec![("web", 1, Is::Exited(1, -1))], &crashing, (crash_words, "Error 1", 1)),
        (&always, vec![("web", 0, Is::CannotRun)], &attached(), ("ContainerCannotRun 127", "", 0)),
        (&always, vec![("web", 0, Is::Exited(1, -1)), ("web", 1, Is::Created)], &attached(), ("Error 1", "", 0)),
    ];
    for (spec, instances, records, (state, last, restarts)) in table {
        let status = status(spec, Some(Is::Running), &instances, records, false);
        assert_eq!(container(&status), (state.to_owned(), last.to_owned(), restarts));
    }
}

#[test]
fn readiness_waits_for_probes() {
    let mut records = attached();
    let running = [("web", 0, Is::Running)];
    let table = [((false, false), "False"), ((true, false), "False"), ((true, true), "True")];
    for ((started, ready_now), expected) in table {
        records.probes.insert("web-0".to_owned(), ProbeState { started, ready: ready_now });
        let status = status(&one("Always"), Some(Is::Running), &running, &records, false);
        assert_eq!(ready(&status).0, expected, "{started} {ready_now}");
    }
}

#[test]
fn addresses_and_identity() {
    let status = status(&one("Always"), Some(Is::Running), &[("web", 0, Is::Running)], &attached(), false);
    assert_eq!(status.pod_ip.as_deref(), Some("10.42.0.2"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let web = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(web.container_id.as_deref(), Some("docker://web-0"));
    assert_eq!(web.image_id, "docker://sha256:aa");
}

#[test]
fn transitions_keep_their_time() {
    let spec = one("Always");
    let first = status(&spec, Some(Is::Running), &[("web", 0, Is::Running)], &attached(), false);
    let mut later = pod(spec);
    later.status = Some(first.clone());
    let members = members(&later);
    let runtime = runtime(Some(Is::Running), &[("web", 0, Is::Running)]);
    let again = compute(&Observation {
        pod: &later,
        members: &members,
        runtime: &runtime,
        records: &attached(),
        starting: &Default::default(),
        resizes: &Default::default(),
        host_ip: [192, 0, 2, 1].into(),
        has_recursive_read_only: false,
        started_at: at(0),
        ended: None,
        is_terminal: false,
        now: at(500),
    });
    assert_eq!(again, first);
}

#[test]
fn an_evicted_pod_has_failed_when_nothing_of_it_runs() {
    let (pod, resizes, starting) = (pod(one("Always")), Resizes::default(), Default::default());
    let (members, records) = (members(&pod), attached());
    let ended = Ended { reason: "Evicted".to_owned(), message: "low".to_owned(), grace: None, is_disruption: true };
    let status = |is: Is, is_terminal| {
        compute(&Observation {
            pod: &pod,
            members: &members,
            runtime: &runtime(Some(Is::Running), &[("web", 0, is)]),
            records: &records,
            starting: &starting,
            resizes: &resizes,
            host_ip: [192, 0, 2, 1].into(),
            has_recursive_read_only: false,
            started_at: at(-100),
            ended: Some(&ended),
            is_terminal,
            now: at(0),
        })
    };
    for (is, is_terminal, phase, reason) in
        [(Is::Running, false, "Pending", None), (Is::Exited(137, -1), true, "Failed", Some("Evicted"))]
    {
        let status = status(is, is_terminal);
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some(phase), reason));
        let conditions = status.conditions.unwrap();
        let disruption = conditions.iter().find(|condition| condition.type_ == "DisruptionTarget").unwrap();
        assert_eq!((disruption.status.as_str(), disruption.reason.as_deref()), ("True", Some("TerminationByKubelet")));
        assert_eq!(disruption.message.as_deref(), Some("low"));
    }
}

#[test]
fn whom_a_container_runs_as() {
    let user = |instances: &[(&str, u32, Is)]| {
        let status = status(&one("Always"), Some(Is::Running), instances, &attached(), false);
        serde_json::to_value(&status.container_statuses.unwrap()[0].user).unwrap()
    };
    let expected = json!({"linux": {"uid": 1_000, "gid": 3_000, "supplementalGroups": [3_000, 4_000]}});
    assert_eq!(user(&[("web", 0, Is::Running)]), expected);
    assert_eq!(user(&[]), Value::Null);
    assert_eq!(user(&[("web", 0, Is::Exited(0, -1))]), Value::Null, "it was never seen running");
    // What it began as stays, whomever it has become.
    let mut runtime = runtime(Some(Is::Running), &[("web", 0, Is::Running)]);
    let began = runtime.latest("web").unwrap().detail.user.clone();
    let other = Some(ProcessUser { uid: 7, gid: 7, groups: Vec::new() });
    for (is, now) in [(Is::Running, other), (Is::Exited(0, -1), None)] {
        runtime.put(crate::cri::ContainerDetail { user: now, ..detail("web", 0, "POD-0", is) });
        assert_eq!(runtime.latest("web").unwrap().detail.user, began);
    }
}
