//! Tables: what nodes and pods look like, and what is done about them.

use serde_json::{Value, json};

use super::super::super::history::POD_HASH;
use super::*;

const NOW: &str = "2026-01-01T00:01:00Z";

fn set(strategy: Value) -> DaemonSet {
    serde_json::from_value(json!({"metadata": {"name": "agent", "namespace": "a", "uid": "set", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "updateStrategy": strategy, "minReadySeconds": 5,
        "template": {"spec": {"containers": [], "nodeSelector": {"on": "yes"}}}}}))
    .unwrap()
}

fn rolling(unavailable: Value, surge: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}})
}

/// `n1` fits; `n1-` does not; in `n1t` none is started, but one may stay.
fn node(text: &str) -> Arc<Node> {
    let name = &text[..2];
    let mut node = json!({"metadata": {"name": name, "labels": {"on": if text.ends_with('-') { "no" } else { "yes" }}}});
    if text.ends_with('t') {
        node["spec"] = json!({"taints": [{"key": "full", "effect": "NoSchedule"}]});
    }
    Arc::new(serde_json::from_value(node).unwrap())
}

/// `n1:new` is available; with `!` not ready, `.` ready for 2 s, `~` terminating, `F` failed, `S` succeeded, `?` not bound yet.
fn pod(at: usize, text: &str) -> Arc<Pod> {
    let (node, rest) = text.split_once(':').unwrap();
    let hash = rest.trim_end_matches(['!', '.', '~', 'F', 'S', '?']);
    let marks = &rest[hash.len()..];
    let phase = if marks.contains('F') {
        "Failed"
    } else if marks.contains('S') {
        "Succeeded"
    } else {
        "Running"
    };
    let is_ready = phase == "Running" && !marks.contains(['!', '?']);
    let since = if marks.contains('.') { "2026-01-01T00:00:58Z" } else { "2026-01-01T00:00:00Z" };
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let mut pod = json!({"metadata": {"name": format!("{node}-{hash}-{at}"), "namespace": "a", "uid": format!("u{at}"), "labels": {POD_HASH: hash}},
        "spec": {"containers": [], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [field]}]}}}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" },
            "lastTransitionTime": since}]}});
    pod["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:0{at}Z"));
    if !marks.contains('?') {
        pod["spec"]["nodeName"] = json!(node);
    }
    if marks.contains('~') {
        pod["metadata"]["deletionTimestamp"] = json!(NOW);
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn planned(strategy: Value, nodes: &str, pods: &str, waiting: &[(&str, u64)]) -> Plan {
    plan(&Observed {
        set: &set(strategy),
        nodes: nodes.split_whitespace().map(node).collect(),
        pods: pods.split_whitespace().enumerate().map(|(at, text)| pod(at, text)).collect(),
        hash: "new",
        waiting: waiting.iter().map(|(node, seconds)| ((*node).to_owned(), Duration::from_secs(*seconds))).collect(),
        now: NOW.parse().unwrap(),
    })
}

fn describe(plan: &Plan) -> String {
    let create = plan.create.iter().map(|node| format!("+{node}"));
    let delete = plan.delete.iter().map(|pod| format!("-{}", name_of(&pod.metadata)));
    create.chain(delete).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(strategy: Value, table: &[(&str, &str, &str)]) {
    for (nodes, pods, expected) in table {
        assert_eq!(describe(&planned(strategy.clone(), nodes, pods, &[])), *expected, "{strategy}: {nodes} / {pods}");
    }
}

#[test]
fn every_node_that_fits_has_one_pod() {
    check(
        rolling(json!(1), json!(0)),
        &[
            ("n1 n2 n3- n4t", "", "+n1 +n2"),
            ("n1 n2", "n1:new", "+n2"),
            ("n1 n2", "n1:new n2:new?", ""),
            ("n1 n2-", "n1:new n2:new", "-n2-new-1"),
            ("n1 n2-", "n1:new n2:new~", ""),
            ("n1 n2t", "n1:new n2:new", ""),
            ("n1", "n1:new~", ""),
            // One that ended and is on its way out does not hold the next one up.
            ("n1", "n1:newF~", "+n1"),
            ("n1", "n1:new n1:new!", "-n1-new-1"),
            ("n1", "n1:new? n1:new", "-n1-new-0"),
            // A node that is gone: what waits for it goes; what was bound to it is the pod collector's.
            ("n1", "n1:new n9:new n8:new?", "-n8-new-2"),
        ],
    );
}

#[test]
fn ended_pods_are_deleted_with_delay() {
    let failed = planned(rolling(json!(1), json!(0)), "n1 n2", "n1:newF n2:newS", &[]);
    assert_eq!(describe(&failed), "-n1-new-0 -n2-new-1");
    let ended: Vec<(&str, bool)> = failed.ended.iter().map(|ended| (ended.node.as_str(), ended.has_failed)).collect();
    assert_eq!(ended, [("n1", true), ("n2", false)]);
    let waiting = planned(rolling(json!(1), json!(0)), "n1 n2", "n1:newF n2:newS", &[("n1", 4), ("n2", 8)]);
    assert_eq!((describe(&waiting).as_str(), waiting.look_again), ("-n2-new-1", Some(Duration::from_secs(4))));
    let twice = planned(rolling(json!(1), json!(0)), "n1", "n1:newF n1:newF", &[]);
    assert_eq!((describe(&twice).as_str(), twice.ended.len()), ("-n1-new-0", 1));
}

#[test]
fn an_update_makes_only_so_many_unavailable() {
    check(
        rolling(json!(1), json!(0)),
        &[
            ("n1 n2 n3", "n1:old n2:old n3:old", "-n1-old-0"),
            ("n1 n2 n3", "n1:old~ n2:old n3:old", ""),
            ("n1 n2 n3", "n1:new! n2:old n3:old", ""),
            ("n1 n2 n3", "n1:new. n2:old n3:old", ""),
            ("n1 n2 n3", "n1:new n2:old n3:old", "-n2-old-1"),
            ("n1 n2 n3", "n1:old! n2:old n3:old", "-n1-old-0"),
            ("n1 n2 n3", "n1:old! n2:old! n3:old", "-n1-old-0 -n2-old-1"),
            ("n1 n2 n3", "n1:new n2:new n3:new", ""),
        ],
    );
    check(rolling(json!("50%"), json!(0)), &[("n1 n2 n3", "n1:old n2:old n3:old", "-n1-old-0 -n2-old-1")]);
    check(json!({"type": "OnDelete"}), &[("n1 n2", "n1:old n2:old!", ""), ("n1 n2", "n1:old", "+n2")]);
}

#[test]
fn an_update_with_surge_makes_none_unavailable() {
    check(
        rolling(json!(0), json!(1)),
        &[
            ("n1 n2", "n1:old n2:old", "+n1"),
            ("n1 n2", "n1:old n1:new! n2:old", ""),
            ("n1 n2", "n1:old n1:new. n2:old", ""),
            ("n1 n2", "n1:old n1:new n2:old", "-n1-old-0"),
            ("n1 n2", "n1:old~ n1:new n2:old", "+n2"),
            ("n1 n2", "n1:old! n2:old", "+n1 +n2"),
            ("n1 n2", "n1:old! n1:new! n2:old", "-n1-old-0"),
            ("n1", "n1:new~", "+n1"),
            ("n1", "n1:old n1:old n1:new n1:new!", "-n1-new-3 -n1-old-1 -n1-old-0"),
            // The pods move from n2 to n1: the one on n2 goes when another serves.
            ("n1 n2t", "n1:new! n2:old", ""),
            ("n1 n2t", "n1:new n2:old", "-n2-old-1"),
            ("n1 n2t", "n1:new n2:old!", "-n2-old-1"),
        ],
    );
    check(rolling(json!(0), json!("100%")), &[("n1 n2", "n1:old n2:old", "+n1 +n2")]);
}

#[test]
fn status_counts() {
    for (nodes, pods, expected, look_again) in [
        ("n1 n2 n3-", "", [2, 0, 0, 0, 0, 0, 2], None),
        ("n1 n2 n3-", "n1:new n2:old! n3:old", [2, 2, 1, 1, 1, 1, 1], None),
        ("n1 n2t", "n1:new. n2:new", [1, 1, 1, 1, 1, 0, 1], Some(3)),
        ("n1", "n1:old n1:new", [1, 1, 0, 1, 0, 1, 0], None),
    ] {
        let plan = planned(json!({"type": "OnDelete"}), nodes, pods, &[]);
        let status = &plan.status;
        let count = |count: Option<i32>| count.unwrap_or(0);
        let numbers = [
            status.desired_number_scheduled,
            status.current_number_scheduled,
            status.number_misscheduled,
            status.number_ready,
            count(status.updated_number_scheduled),
            count(status.number_available),
            count(status.number_unavailable),
        ];
        assert_eq!((numbers, plan.look_again.map(|wait| wait.as_secs())), (expected, look_again), "{nodes} / {pods}");
        assert_eq!(status.observed_generation, Some(2));
    }
}
