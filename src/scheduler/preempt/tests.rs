//! Who makes room for whom, over tables of nodes, pods and budgets.

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};

use super::super::snapshot::tests::node;
use super::super::verdict::{self, Verdict};
use super::*;

/// A pod of `a`: name, CPU, priority, label `app`, and when it began (seconds), with more in its specification.
fn pod_with(name: &str, cpu: &str, priority: i32, app: &str, began: u32, extra: &Value) -> Arc<PodInfo> {
    let mut value = json!({"metadata": {"name": name, "uid": name, "namespace": "a", "labels": {"app": app}},
        "spec": {"priority": priority, "containers": [{"name": "c", "image": "x", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"startTime": format!("2030-01-01T00:{:02}:{:02}Z", began / 60, began % 60)}});
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = extra.clone();
    }
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(value).unwrap())))
}

fn pod(name: &str, cpu: &str, priority: i32, began: u32) -> Arc<PodInfo> {
    pod_with(name, cpu, priority, name, began, &json!({}))
}

/// The same pod, being deleted by the scheduler or only marked by it.
fn marked(pod: &PodInfo, is_deleted: bool) -> Arc<PodInfo> {
    let mut value = serde_json::to_value(&*pod.pod).unwrap();
    value["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]);
    if is_deleted {
        value["metadata"]["deletionTimestamp"] = json!("2030-01-01T01:00:00Z");
    }
    Arc::new(PodInfo::new(Arc::new(serde_json::from_value(value).unwrap())))
}

fn budget(name: &str, app: &str, allowed: i32, disrupted: &[&str]) -> PodDisruptionBudget {
    let disrupted: serde_json::Map<String, Value> =
        disrupted.iter().map(|name| ((*name).to_owned(), json!("2030-01-01T00:00:00Z"))).collect();
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a", "resourceVersion": "1"},
        "spec": {"selector": {"matchLabels": {"app": app}}},
        "status": {"disruptionsAllowed": allowed, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
            "disruptedPods": disrupted}}))
    .unwrap()
}

fn budgets(all: &[PodDisruptionBudget]) -> Budgets {
    let mut budgets = Budgets::default();
    budgets.replace(all.iter());
    budgets
}

fn cluster(nodes: &[(&str, &[&Arc<PodInfo>])]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, pods) in nodes {
        snapshot.set_node(node(name, "4", &json!({"zone": &name[..1]})));
        pods.iter().for_each(|pod| snapshot.place(Arc::clone(pod), name));
    }
    snapshot
}

/// The node and the names of the victims; or what is said.
fn found(preemptions: &mut Preemptions, snapshot: &Snapshot, pod: &PodInfo) -> Result<(String, Vec<String>), String> {
    let mut cycle = Cycle::new(pod, snapshot);
    match preemptions.find(&mut cycle, snapshot) {
        Outcome::Remove { slot, victims } => {
            let mut names: Vec<String> = victims.iter().map(|victim| victim.name().to_owned()).collect();
            names.sort();
            Ok((snapshot.node(slot).name.clone(), names))
        }
        Outcome::Wait(why) => Err(why.to_owned()),
        Outcome::Useless(why) => Err(why),
    }
}

fn check(snapshot: &Snapshot, all: &[PodDisruptionBudget], pod: &PodInfo, expected: Result<(&str, &[&str]), &str>) {
    let seen = found(&mut Preemptions::new(budgets(all)), snapshot, pod);
    let expected = expected.map(|(node, names)| (node.to_owned(), names.iter().map(|name| (*name).to_owned()).collect()));
    assert_eq!(seen, expected.map_err(str::to_owned));
}

#[test]
fn as_few_as_possible_and_the_least_important() {
    let high = pod("high", "2", 100, 0);
    let (a, b, c, d) = (pod("a", "1", 10, 1), pod("b", "1", 10, 2), pod("c", "1", 20, 3), pod("d", "1", 100, 4));
    // Of equal priorities those that began last.
    check(&cluster(&[("n1", &[&a, &b, &c, &d])]), &[], &high, Ok(("n1", &["a", "b"])));
    let e = pod("e", "1", 10, 9);
    check(&cluster(&[("n1", &[&a, &e, &c])]), &[], &high, Ok(("n1", &["e"])));
    // One big pod that is more important is kept if small ones do.
    check(&cluster(&[("n1", &[&pod("big", "2", 20, 5), &a, &e])]), &[], &high, Ok(("n1", &["a", "e"])));
    // Nothing that anybody can do.
    let nobody = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    check(&cluster(&[("n1", &[&d, &pod("f", "3", 100, 1)])]), &[], &high, Err(nobody));
    let useless = "0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    check(&cluster(&[("n1", &[&a, &b])]), &[], &pod("huge", "8", 100, 0), Err(useless));
    let selective = pod_with("s", "4", 100, "s", 0, &json!({"nodeSelector": {"zone": "z"}}));
    check(&cluster(&[("n1", &[&a, &b])]), &[], &selective, Err(useless));
    let too_little = "0/1 nodes are available: 1 Insufficient cpu.";
    check(&cluster(&[("n1", &[&a, &b, &d])]), &[], &pod("whole", "4", 100, 0), Err(too_little));
}

#[test]
fn words_and_policies() {
    let (low, top) = (pod("low", "4", 0, 1), pod("top", "4", 100, 1));
    let mut snapshot = cluster(&[("n1", &[&top])]);
    let mut cordoned = (*node("n2", "4", &json!({}))).clone();
    cordoned.spec = serde_json::from_value(json!({"unschedulable": true})).unwrap();
    snapshot.set_node(cordoned.into());
    snapshot.place(Arc::clone(&low), "n2");
    let said = "0/2 nodes are available: 1 No preemption victims found for incoming pod, \
                1 Preemption is not helpful for scheduling.";
    check(&snapshot, &[], &pod("high", "1", 100, 0), Err(said));
    let never = pod_with("never", "1", 100, "x", 0, &json!({"preemptionPolicy": "Never"}));
    check(&cluster(&[("n1", &[&low])]), &[], &never, Err(NEVER));
}

#[test]
fn budgets_are_respected_where_it_can_be() {
    let high = pod("high", "2", 100, 0);
    let pods = |app: &str, names: [&str; 2], priority| names.map(|name| pod_with(name, "2", priority, app, 1, &json!({})));
    let (kept, free) = (pods("kept", ["k1", "k2"], 0), pods("free", ["f1", "f2"], 50));
    let two = cluster(&[("n1", &[&kept[0], &kept[1]]), ("n2", &[&free[0], &free[1]])]);
    let one = cluster(&[("n1", &[&kept[0], &free[0]])]);
    // Without a budget the lower priority goes; with one, the pods it does not protect, though they are more important.
    check(&two, &[], &high, Ok(("n1", &["k2"])));
    check(&two, &[budget("b", "kept", 0, &[])], &high, Ok(("n2", &["f2"])));
    check(&one, &[], &high, Ok(("n1", &["k1"])));
    check(&one, &[budget("b", "kept", 0, &[])], &high, Ok(("n1", &["f1"])));
    // One may go, and one is counted already.
    check(&two, &[budget("b", "kept", 1, &[])], &pod("h", "4", 100, 0), Ok(("n2", &["f1", "f2"])));
    check(&two, &[budget("b", "kept", 1, &["k1"])], &pod("h", "4", 100, 0), Ok(("n1", &["k1", "k2"])));
    // Where there is no other way, a budget is broken.
    let only = cluster(&[("n1", &[&kept[0], &kept[1]])]);
    check(&only, &[budget("b", "kept", 0, &[])], &high, Ok(("n1", &["k2"])));
    // What was taken is taken, also before the budget's status says so.
    let mut preemptions = Preemptions::new(budgets(&[budget("b", "kept", 1, &[])]));
    assert_eq!(found(&mut preemptions, &two, &high).unwrap().0, "n1");
    assert_eq!(found(&mut preemptions, &two, &pod("next", "2", 100, 0)).unwrap().0, "n2");
}

#[test]
fn nodes_are_compared_in_upstreams_order() {
    let whole = |name, priority, began| pod(name, "4", priority, began);
    let half = |name, priority, began| pod(name, "2", priority, began);
    let high = pod("high", "4", 100, 0);
    for (case, one, other, expected) in [
        ("highest priority", vec![whole("a", 20, 1)], vec![whole("b", 10, 1)], "n2"),
        ("sum", vec![half("a", 20, 1), half("b", 20, 1)], vec![half("c", 20, 1), half("d", 10, 1)], "n2"),
        ("number", vec![half("a", 20, 1), half("b", -5, 1)], vec![whole("c", 20, 1)], "n2"),
        ("start", vec![whole("a", 20, 5)], vec![whole("b", 20, 9)], "n2"),
        ("start of the highest only", vec![half("a", 20, 9), half("b", 10, 1)], vec![half("c", 20, 5), half("d", 10, 8)], "n1"),
        ("all the same", vec![whole("a", 20, 5)], vec![whole("b", 20, 5)], "n1"),
    ] {
        let snapshot = cluster(&[("n1", &one.iter().collect::<Vec<_>>()), ("n2", &other.iter().collect::<Vec<_>>())]);
        assert_eq!(found(&mut Preemptions::default(), &snapshot, &high).unwrap().0, expected, "{case}");
    }
}

#[test]
fn what_was_worked_out_of_the_snapshot_follows_the_pods_that_go() {
    let (small, near) = (
        pod_with("small", "100m", 10, "web", 1, &json!({})),
        json!([{"topologyKey": "zone",
        "labelSelector": {"matchLabels": {"app": "web"}}}]),
    );
    let rule = |kind: &str| json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": near}}});
    let other = pod_with("other", "100m", 10, "db", 1, &json!({}));
    let snapshot = cluster(&[("n1", &[&small, &other])]);
    // Only the pod that is avoided has to go.
    let apart = pod_with("apart", "1", 100, "x", 0, &rule("podAntiAffinity"));
    check(&snapshot, &[], &apart, Ok(("n1", &["small"])));
    // A pod that avoids the new one goes.
    let loner = pod_with("loner", "100m", 10, "x", 1, &rule("podAntiAffinity"));
    check(&cluster(&[("n1", &[&loner, &other])]), &[], &pod_with("p", "1", 100, "web", 0, &json!({})), Ok(("n1", &["loner"])));
    // The pods that the new one wants to be near to are all of lower priority: as upstream, that node is not for it.
    let friend = pod_with("friend", "3900m", 100, "x", 0, &rule("podAffinity"));
    let lonely = "0/1 nodes are available: 1 node(s) didn't match pod affinity rules.";
    check(&snapshot, &[], &friend, Err(lonely));
    let equal = pod_with("equal", "100m", 100, "web", 1, &json!({}));
    check(&cluster(&[("n1", &[&equal, &other])]), &[], &friend, Ok(("n1", &["other"])));
    // Skew: one of the crowded zone has to go, nobody else.
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}], "nodeSelector": {"zone": "a"}});
    let mut crowded = cluster(&[("a1", &[&small, &other])]);
    crowded.set_node(node("b1", "4", &json!({"zone": "b"})));
    let mut anywhere = spread.clone();
    anywhere["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
    check(&crowded, &[], &pod_with("p", "1", 100, "web", 0, &anywhere), Ok(("a1", &["small"])));
    let ports = |name: &str, priority| {
        let containers = json!([{"name": "c", "image": "x", "ports": [{"containerPort": 1, "hostPort": 80}]}]);
        pod_with(name, "1", priority, name, 0, &json!({"containers": containers}))
    };
    check(&cluster(&[("n1", &[&ports("taken", 0), &other])]), &[], &ports("wants", 100), Ok(("n1", &["taken"])));
}

#[test]
fn nominated_pods_keep_their_room() {
    let (a, b) = (pod("a", "2", 0, 1), pod("b", "2", 0, 2));
    let mut snapshot = cluster(&[("n1", &[&a, &b])]);
    let mut preemptions = Preemptions::default();
    let first = pod("first", "2", 50, 0);
    assert_eq!(found(&mut preemptions, &snapshot, &first), Ok(("n1".to_owned(), vec!["b".to_owned()])));
    snapshot.nominations.set(Arc::clone(&first), "n1");
    // While its victim ends it waits and takes no other, also when the scheduler is a new one that finds the pod ending.
    assert_eq!(found(&mut preemptions, &snapshot, &first), Err(UNDER_WAY.to_owned()));
    snapshot.place(marked(&b, true), "n1");
    assert_eq!(found(&mut Preemptions::default(), &snapshot, &first), Err(UNDER_WAY.to_owned()));
    // One of the same priority needs the other pod; a lower one finds no room on a node that looks free.
    let second = pod("second", "2", 50, 0);
    assert_eq!(found(&mut preemptions, &snapshot, &second), Ok(("n1".to_owned(), vec!["a".to_owned(), "b".to_owned()])));
    snapshot.remove_pod("b");
    let low = pod("low", "2", 0, 0);
    let verdict = |snapshot: &Snapshot, pod: &PodInfo| verdict::choose(&mut Cycle::new(pod, snapshot), snapshot, &mut 0);
    assert!(matches!(verdict(&snapshot, &low), Verdict::Unschedulable { message, .. } if message.contains("Insufficient cpu")));
    assert!(matches!(verdict(&snapshot, &pod("top", "2", 99, 0)), Verdict::Place(_)));
    assert!(matches!(verdict(&snapshot, &first), Verdict::Place(_)));
    assert!(snapshot.nominations.remove("first"));
    assert!(matches!(verdict(&snapshot, &low), Verdict::Place(_)));
}

#[test]
fn a_new_scheduler_goes_on_where_the_old_one_was_killed() {
    let (a, b) = (pod("a", "4", 20, 1), pod("b", "4", 10, 1));
    let mut snapshot = cluster(&[("n1", &[&a]), ("n2", &[&b])]);
    let high = pod("high", "4", 100, 0);
    // Only the nomination was written: the choice is free.
    snapshot.nominations.set(Arc::clone(&high), "n1");
    assert_eq!(found(&mut Preemptions::default(), &snapshot, &high).unwrap().0, "n2");
    // A victim was marked: it is the one that goes.
    snapshot.place(marked(&a, false), "n1");
    assert_eq!(found(&mut Preemptions::default(), &snapshot, &high).unwrap().0, "n1");
    // Unless the node does not do any more.
    let mut cordoned = (*node("n1", "4", &json!({}))).clone();
    cordoned.spec = serde_json::from_value(json!({"unschedulable": true})).unwrap();
    snapshot.set_node(cordoned.into());
    snapshot.place(marked(&a, true), "n1");
    assert_eq!(found(&mut Preemptions::default(), &snapshot, &high).unwrap().0, "n2");
}

#[test]
fn a_thousand_pods_preempt_on_a_thousand_full_nodes_in_seconds() {
    let mut snapshot = Snapshot::default();
    for number in 0..1_000 {
        let name = format!("n{number}");
        snapshot.set_node(node(&name, "4", &json!({})));
        (0..8).for_each(|one| snapshot.place(pod(&format!("{name}-{one}"), "500m", 0, number % 3_000), &name));
    }
    let (mut preemptions, mut start, mut removed) = (Preemptions::default(), 0, 0);
    let begun = crate::rt::clock::instant();
    for number in 0..1_000 {
        let pod = pod(&format!("high-{number}"), "1", 100, 0);
        let mut cycle = Cycle::new(&pod, &snapshot);
        assert!(matches!(verdict::choose(&mut cycle, &snapshot, &mut start), Verdict::Unschedulable { .. }));
        let Outcome::Remove { slot, victims } = preemptions.find(&mut cycle, &snapshot) else { panic!("room can be made") };
        assert_eq!(victims.len(), 2);
        let name = snapshot.node(slot).name.clone();
        snapshot.nominations.set(Arc::clone(&pod), &name);
        // Every other one gets its room before the next is tried.
        if number % 2 == 0 {
            removed += victims.iter().filter(|victim| snapshot.remove_pod(victim.uid())).count();
            let mut cycle = Cycle::new(&pod, &snapshot);
            assert_eq!(verdict::choose(&mut cycle, &snapshot, &mut start), Verdict::Place(slot));
            snapshot.nominations.remove(pod.uid());
            snapshot.place(pod, &name);
        }
    }
    let took = begun.elapsed();
    println!("1,000 preemptors on 1,000 full nodes: {took:?}");
    assert_eq!(removed, 1_000);
    assert!(took.as_secs() < 60, "{took:?}");
}
