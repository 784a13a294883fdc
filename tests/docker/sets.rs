//! StatefulSets and DaemonSets with real pods and real kubectls: order, claims, updates, rollback, nodes that come, change and are
//! drained, and a server that is killed in the midst. One cluster of two nodes serves all cases; each has a namespace of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::join::Node;
use crate::pods::{events, get, sh, until, until_event_within, until_ready, until_within};
use crate::support::{Cluster, Kubectl, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// A StatefulSet or a DaemonSet of busybox pods that print their version and sleep.
fn workload(kind: &str, name: &str, version: &str, more: Value) -> Value {
    let container = json!({"name": "c", "image": "busybox", "imagePullPolicy": "Never", "env": [{"name": "V", "value": version}],
        "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]});
    let mut spec = json!({"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn with_claims(mut set: Value) -> Value {
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}});
    set["spec"]["volumeClaimTemplates"] = json!([claim]);
    set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    set
}

fn apply(kubectl: &Kubectl, object: &Value) {
    kubectl.manifest(&["apply"], &object.to_string()).unwrap_or_else(|error| panic!("{object}: {error}"));
}

fn rolled_out(kubectl: &Kubectl, what: &str) -> String {
    kubectl.run(["rollout", "status", what, "--timeout=60s"])
}

fn names(kubectl: &Kubectl, kind: &str) -> Vec<String> {
    let listed = kubectl.run(["get", kind, "-o", "name", "--sort-by=.metadata.name"]);
    listed.lines().filter_map(|line| line.split_once('/')).map(|(_, name)| name.to_owned()).collect()
}

fn until_names(kubectl: &Kubectl, kind: &str, expected: &[&str]) {
    wait_for(&format!("{kind} to be {expected:?}"), MINUTE, || {
        let seen = names(kubectl, kind);
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

/// Sets the variable that the pods print.
fn set_version(kubectl: &Kubectl, what: &str, version: &str) {
    kubectl.run(["set", "env", what, &format!("V={version}")]);
}

fn versions(kubectl: &Kubectl, app: &str) -> String {
    let path = "jsonpath={.items[*].spec.containers[0].env[0].value}";
    kubectl.run(["get", "pods", "-l", &format!("app={app}"), "--sort-by=.metadata.name", "-o", path])
}

fn uid(kubectl: &Kubectl, pod: &str) -> String {
    get(kubectl, pod, "{.metadata.uid}")
}

/// Makes a pod fail as an eviction by its node would.
fn fail(kubectl: &Kubectl, pod: &str) {
    kubectl.run(["patch", "pod", pod, "--subresource=status", "-p", r#"{"status": {"phase": "Failed", "reason": "Evicted"}}"#]);
}

#[test]
fn sets_of_pods_with_names_and_on_nodes() {
    let mut cluster = Cluster::start();
    let mut second = Node::on_machine(&cluster);
    let token = std::fs::read_to_string(cluster.folder.path().join("data/token")).unwrap();
    let kubectl = cluster.kubectl("1.33");
    let of = |name: &str| {
        kubectl.run(["create", "namespace", name]);
        let kubectl = kubectl.in_namespace(name);
        wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
        kubectl
    };
    let (ordered, updated, kept, daemons) = (of("ordered"), of("updated"), of("kept"), of("daemons"));
    let second_name = second.name().to_owned();
    std::thread::scope(|scope| {
        scope.spawn(|| pods_come_and_go_in_order_and_keep_their_claims(&cluster, &ordered));
        scope.spawn(|| updates_stop_where_they_should(&updated));
        scope.spawn(|| claims_go_as_the_policy_says(&kept));
        scope.spawn(|| {
            apply(&daemons, &workload("DaemonSet", "agent", "1", json!({})));
            rolled_out(&daemons, "ds/agent");
            second.start(token.trim());
            nodes_get_their_pods(&cluster, &daemons, &second_name);
        });
    });
    let delete = |name: &str| kubectl.run(["delete", "namespace", name, "--wait=false"]);
    for name in ["ordered", "updated", "kept"] {
        delete(name);
    }
    daemons_are_rolled_back(&daemons);
    a_drain_leaves_daemons(&daemons, &second_name);
    let lost = of("lost");
    nothing_is_lost_or_doubled(&mut cluster, &lost);
    delete("daemons");
    delete("lost");
    wait_for("all pods to be gone", MINUTE, || {
        let left = kubectl.run(["get", "pods", "-A", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

fn pods_come_and_go_in_order_and_keep_their_claims(cluster: &Cluster, kubectl: &Kubectl) {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dbs"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 80}]}});
    apply(kubectl, &service);
    apply(kubectl, &with_claims(workload("StatefulSet", "db", "1", json!({"replicas": 3, "serviceName": "dbs"}))));
    rolled_out(kubectl, "sts/db");
    assert_eq!(
        (names(kubectl, "pods").join(" "), names(kubectl, "pvc").join(" ")),
        ("db-0 db-1 db-2".into(), "data-db-0 data-db-1 data-db-2".into())
    );
    let path = "{.items[*].metadata.creationTimestamp}";
    let ready = "{.items[*].status.conditions[?(@.type==\"Ready\")].lastTransitionTime}";
    let list = |path: &str| kubectl.jsonpath(&["pods", "--sort-by=.metadata.name"], path);
    let (created, ready) = (list(path), list(ready));
    for (next, before) in created.split(' ').skip(1).zip(ready.split(' ')) {
        assert!(next >= before, "a pod was made before the one before it was ready: {created}; {ready}");
    }
    let labels = get(
        kubectl,
        "db-1",
        "{.metadata.labels.statefulset\\.kubernetes\\.io/pod-name} {.metadata.labels.apps\\.kubernetes\\.io/pod-index}",
    );
    assert_eq!(labels, "db-1 1");
    assert_eq!(sh(kubectl, "db-1", "hostname -f").trim(), "db-1.dbs.ordered.svc.cluster.local");
    let said = events(kubectl, "db");
    for words in [
        "create Claim data-db-0 Pod db-0 in StatefulSet db success",
        "SuccessfulCreate: create Pod db-0 in StatefulSet db successful",
    ] {
        assert!(said.contains(words), "{said}");
    }
    // Its name leads to a pod, from another pod.
    let ip = get(kubectl, "db-2", "{.status.podIP}");
    wait_for("the pod's name to resolve", MINUTE, || {
        let output = kubectl.output(["exec", "db-0", "--", "nslookup", "db-2.dbs.ordered.svc.cluster.local"]);
        let seen = text(&output.stdout);
        if seen.contains(&ip) { Ok(()) } else { Err(seen) }
    });
    // Data outlives the pod.
    for pod in ["db-0", "db-2"] {
        sh(kubectl, pod, "hostname > /data/own; sync");
    }
    let before = uid(kubectl, "db-0");
    kubectl.run(["delete", "pod", "db-0"]);
    rolled_out(kubectl, "sts/db");
    until_ready(kubectl, "db-0");
    assert_ne!(uid(kubectl, "db-0"), before);
    assert_eq!(sh(kubectl, "db-0", "cat /data/own").trim(), "db-0");
    // Down from the end, by an old client; the claims stay.
    let old = cluster.kubectl("1.20").in_namespace("ordered");
    old.run(["scale", "sts/db", "--replicas=1"]);
    until_names(kubectl, "pods", &["db-0"]);
    let times = kubectl.run([
        "get",
        "events",
        "--field-selector=reason=SuccessfulDelete",
        "--sort-by=.metadata.resourceVersion",
        "-o",
        "jsonpath={.items[*].message}",
    ]);
    let at = |pod: &str| {
        times.find(&format!("delete Pod {pod} in StatefulSet db successful")).unwrap_or_else(|| panic!("{pod}: {times}"))
    };
    assert!(at("db-2") < at("db-1"), "{times}");
    assert_eq!(names(kubectl, "pvc").len(), 3);
    assert!(old.run(["get", "sts", "db"]).contains("1/1"));
    old.run(["scale", "sts/db", "--replicas=3"]);
    rolled_out(kubectl, "sts/db");
    assert_eq!(sh(kubectl, "db-2", "cat /data/own").trim(), "db-2");
    // A pod that an eviction failed comes again.
    let before = uid(kubectl, "db-1");
    fail(kubectl, "db-1");
    until_event_within(MINUTE, kubectl, "db", "RecreatingFailedPod: StatefulSet ordered/db is recreating failed Pod db-1");
    wait_for("another db-1", MINUTE, || {
        kubectl
            .try_run(["get", "pod", "db-1", "-o", "jsonpath={.metadata.uid}"])
            .and_then(|uid| if uid == before { Err(uid) } else { Ok(()) })
    });
    until_ready(kubectl, "db-1");
}

fn updates_stop_where_they_should(kubectl: &Kubectl) {
    let partition = |number: u8| {
        let patch = format!(r#"{{"spec": {{"updateStrategy": {{"rollingUpdate": {{"partition": {number}}}}}}}}}"#);
        kubectl.run(["patch", "sts", "web", "-p", &patch]);
    };
    apply(
        kubectl,
        &workload("StatefulSet", "web", "1", json!({"replicas": 3, "serviceName": "web", "podManagementPolicy": "OrderedReady"})),
    );
    rolled_out(kubectl, "sts/web");
    partition(2);
    set_version(kubectl, "sts/web", "2");
    assert!(rolled_out(kubectl, "sts/web").contains("partitioned roll out complete: 1 new pods have been updated"));
    assert_eq!(versions(kubectl, "web"), "1 1 2");
    // One that is made again below the partition is of the former revision.
    kubectl.run(["delete", "pod", "web-0"]);
    until_ready(kubectl, "web-0");
    assert_eq!(versions(kubectl, "web"), "1 1 2");
    partition(0);
    assert!(rolled_out(kubectl, "sts/web").contains("partitioned roll out complete: 3 new pods have been updated"));
    assert_eq!(versions(kubectl, "web"), "2 2 2");
    let status = |path: &str| kubectl.jsonpath(&["sts", "web"], path);
    assert_eq!(status("{.status.currentRevision}"), status("{.status.updateRevision}"));
    assert_eq!(
        status(
            "{.status.replicas}{.status.readyReplicas}{.status.availableReplicas}{.status.currentReplicas}{.status.updatedReplicas}"
        ),
        "33333"
    );
    // Back: the first revision becomes the third.
    let revisions = || {
        kubectl
            .run(["rollout", "history", "sts/web"])
            .lines()
            .skip(2)
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(revisions(), "1 2");
    kubectl.run(["rollout", "undo", "sts/web"]);
    rolled_out(kubectl, "sts/web");
    assert_eq!((versions(kubectl, "web"), revisions()), ("1 1 1".into(), "2 3".into()));
    assert!(kubectl.run(["rollout", "history", "sts/web", "--revision=2"]).contains("V:\t2"));
    // A pod that does not get ready halts the update, and is repaired by going back and deleting it.
    let probe = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1}}]}}}});
    kubectl.run(["patch", "sts", "web", "-p", &probe.to_string()]);
    wait_for("web-2 to be of the new revision and run", MINUTE, || {
        let seen = get(kubectl, "web-2", "{.status.phase} {.spec.containers[0].readinessProbe.exec.command[0]}");
        if seen == "Running false" { Ok(()) } else { Err(seen) }
    });
    assert!(kubectl.fails(["rollout", "status", "sts/web", "--timeout=3s"]).contains("timed out"));
    assert_eq!(status("{.status.readyReplicas} {.status.updatedReplicas} {.status.currentReplicas}"), "2 1 2");
    kubectl.run(["rollout", "undo", "sts/web", "--to-revision=3"]);
    kubectl.run(["delete", "pod", "web-2"]);
    rolled_out(kubectl, "sts/web");
    assert_eq!(get(kubectl, "web-2", "{.spec.containers[0].readinessProbe}"), "");
    // Old revisions go.
    kubectl.run(["patch", "sts", "web", "-p", r#"{"spec": {"revisionHistoryLimit": 0}}"#]);
    wait_for("one revision to be left", MINUTE, || {
        let left = names(kubectl, "controllerrevisions");
        if left.len() == 1 { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

fn claims_go_as_the_policy_says(kubectl: &Kubectl) {
    let policy = json!({"whenScaled": "Delete", "whenDeleted": "Delete"});
    let more = json!({"replicas": 3, "podManagementPolicy": "Parallel", "ordinals": {"start": 4}, "persistentVolumeClaimRetentionPolicy": policy});
    apply(kubectl, &with_claims(workload("StatefulSet", "tmp", "1", more)));
    rolled_out(kubectl, "sts/tmp");
    until_names(kubectl, "pods", &["tmp-4", "tmp-5", "tmp-6"]);
    assert_eq!(kubectl.jsonpath(&["pvc", "data-tmp-6"], "{.metadata.ownerReferences[*].kind}"), "StatefulSet");
    kubectl.run(["scale", "sts/tmp", "--replicas=1"]);
    until_names(kubectl, "pods", &["tmp-4"]);
    until_names(kubectl, "pvc", &["data-tmp-4"]);
    kubectl.run(["delete", "sts", "tmp"]);
    until_names(kubectl, "pods", &[]);
    until_names(kubectl, "pvc", &[]);
    // A set that is deleted alone leaves its pods, and another adopts them.
    apply(kubectl, &workload("StatefulSet", "again", "1", json!({"replicas": 1})));
    rolled_out(kubectl, "sts/again");
    let before = uid(kubectl, "again-0");
    kubectl.run(["delete", "sts", "again", "--cascade=orphan"]);
    assert_eq!(get(kubectl, "again-0", "{.metadata.ownerReferences}"), "");
    apply(kubectl, &workload("StatefulSet", "again", "1", json!({"replicas": 1})));
    until(kubectl, "again-0", "{.metadata.ownerReferences[*].kind}", "StatefulSet");
    rolled_out(kubectl, "sts/again");
    assert_eq!(uid(kubectl, "again-0"), before, "it goes on running");
}

/// The nodes of the pods of an app that are not going.
fn nodes_of(kubectl: &Kubectl, app: &str) -> Vec<String> {
    let path = "jsonpath={range .items[?(@.status.phase==\"Running\")]}{.spec.nodeName}{\" \"}{end}";
    let mut nodes: Vec<String> =
        kubectl.run(["get", "pods", "-l", &format!("app={app}"), "-o", path]).split_whitespace().map(str::to_owned).collect();
    nodes.sort();
    nodes
}

fn until_on(kubectl: &Kubectl, app: &str, expected: &[&str]) {
    wait_for(&format!("{app} on {expected:?}"), MINUTE, || {
        let seen = nodes_of(kubectl, app);
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}; {}", kubectl.run(["get", "pods", "-o", "wide"]))) }
    });
}

fn nodes_get_their_pods(cluster: &Cluster, kubectl: &Kubectl, second: &str) {
    let first = cluster.node.as_str();
    until_on(kubectl, "agent", &[first, second]);
    assert!(rolled_out(kubectl, "ds/agent").contains("successfully rolled out"));
    let pod = &names(kubectl, "pods")[0];
    assert_eq!(get(kubectl, pod, "{.spec.affinity..matchFields[*].key}"), "metadata.name");
    assert_eq!(get(kubectl, pod, "{.metadata.labels.pod-template-generation}"), "1");
    let tolerated: BTreeSet<String> = get(kubectl, pod, "{.spec.tolerations[*].key}").split(' ').map(str::to_owned).collect();
    let expected = ["not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"];
    assert_eq!(tolerated, expected.map(|taint| format!("node.kubernetes.io/{taint}")).into());
    assert!(events(kubectl, "agent").contains("SuccessfulCreate: Created pod: agent-"));
    // A node gets and loses a pod with its label.
    let mut some = workload("DaemonSet", "some", "1", json!({}));
    some["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    apply(kubectl, &some);
    wait_for("the set to be seen", MINUTE, || {
        let seen = kubectl.jsonpath(&["ds", "some"], "{.status.observedGeneration} {.status.desiredNumberScheduled}");
        if seen == "1 0" { Ok(()) } else { Err(seen) }
    });
    kubectl.run(["label", "node", second, "disk=ssd"]);
    until_on(kubectl, "some", &[second]);
    kubectl.run(["label", "node", second, "disk-"]);
    until_on(kubectl, "some", &[]);
    wait_for("the status", MINUTE, || {
        let seen = kubectl.jsonpath(&["ds", "some"], "{.status.desiredNumberScheduled} {.status.numberMisscheduled}");
        if seen == "0 0" { Ok(()) } else { Err(seen) }
    });
    // A taint that is not tolerated drives it away.
    kubectl.run(["label", "node", second, "disk=ssd"]);
    until_on(kubectl, "some", &[second]);
    kubectl.run(["delete", "ds", "some"]);
    kubectl.run(["label", "node", second, "disk-"]);
    // A failed pod is replaced.
    let failed = names(kubectl, "pods").into_iter().find(|pod| pod.starts_with("agent-")).unwrap();
    fail(kubectl, &failed);
    until_event_within(MINUTE, kubectl, "agent", &format!("FailedDaemonPod: Found failed daemon pod daemons/{failed} on node"));
    until_on(kubectl, "agent", &[first, second]);
}

fn daemons_are_rolled_back(kubectl: &Kubectl) {
    set_version(kubectl, "ds/agent", "2");
    rolled_out(kubectl, "ds/agent");
    assert_eq!(versions(kubectl, "agent"), "2 2");
    let path = "{.status.desiredNumberScheduled}{.status.currentNumberScheduled}{.status.numberReady}{.status.numberAvailable}{.status.updatedNumberScheduled} {.status.numberUnavailable}";
    assert_eq!(kubectl.jsonpath(&["ds", "agent"], path), "22222 ");
    let history = kubectl.run(["rollout", "history", "ds/agent"]);
    assert_eq!(history.lines().skip(2).filter(|line| !line.trim().is_empty()).count(), 2, "{history}");
    kubectl.run(["rollout", "undo", "ds/agent"]);
    rolled_out(kubectl, "ds/agent");
    assert_eq!(versions(kubectl, "agent"), "1 1");
    let revisions = kubectl.jsonpath(&["controllerrevisions", "--sort-by=.revision"], "{.items[*].revision}");
    assert_eq!(revisions, "2 3", "the first is the third now");
    // What is no change of the template restarts nothing.
    let before: Vec<String> = names(kubectl, "pods");
    kubectl.run(["annotate", "ds", "agent", "note=x"]);
    kubectl.run(["patch", "ds", "agent", "-p", r#"{"spec": {"minReadySeconds": 1}}"#]);
    rolled_out(kubectl, "ds/agent");
    assert_eq!(names(kubectl, "pods"), before);
    // With surge a new pod serves before the old one goes.
    kubectl.run([
        "patch",
        "ds",
        "agent",
        "-p",
        r#"{"spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}}}"#,
    ]);
    set_version(kubectl, "ds/agent", "3");
    rolled_out(kubectl, "ds/agent");
    wait_for("one pod a node again", MINUTE, || {
        let seen = versions(kubectl, "agent");
        if seen == "3 3" { Ok(()) } else { Err(seen) }
    });
}

fn a_drain_leaves_daemons(kubectl: &Kubectl, second: &str) {
    let mut web = workload("StatefulSet", "movable", "1", json!({"replicas": 1}));
    web["spec"]["template"]["spec"]["nodeName"] = json!(second);
    apply(kubectl, &web);
    rolled_out(kubectl, "sts/movable");
    let refused = kubectl.fails(["drain", second, "--timeout=20s"]);
    assert!(refused.contains("DaemonSet-managed"), "{refused}");
    let daemon = |field: &str| {
        let selector = format!("--field-selector=spec.nodeName={second}");
        kubectl.run(["get", "pods", "-l", "app=agent", &selector, "-o", &format!("jsonpath={{.items[*].metadata.{field}}}")])
    };
    kubectl.run(["delete", "sts", "movable", "--cascade=orphan"]);
    let before = daemon("uid");
    let output = kubectl.output(["drain", second, "--ignore-daemonsets", "--force", "--timeout=40s"]);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(
        said.contains("ignoring DaemonSet-managed") && said.contains("movable-0 evicted") && said.contains("drained"),
        "{said}"
    );
    assert_eq!(daemon("uid"), before);
    // On a node that takes no pods a daemon still comes again.
    kubectl.run(["delete", "pod", &daemon("name")]);
    wait_for("the daemon on the drained node", MINUTE, || {
        let seen = (daemon("uid"), kubectl.jsonpath(&["ds", "agent"], "{.status.numberReady}"));
        if !seen.0.is_empty() && seen.0 != before && seen.1 == "2" { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    kubectl.run(["uncordon", second]);
}

/// A server that is killed while it makes, updates and deletes pods goes on where it was.
fn nothing_is_lost_or_doubled(cluster: &mut Cluster, kubectl: &Kubectl) {
    apply(kubectl, &workload("StatefulSet", "many", "1", json!({"replicas": 5, "podManagementPolicy": "Parallel"})));
    apply(kubectl, &workload("DaemonSet", "each", "1", json!({})));
    until_within(MINUTE, kubectl, "many-0", "{.metadata.name}", "many-0");
    cluster.kill();
    cluster.spawn();
    rolled_out(kubectl, "sts/many");
    rolled_out(kubectl, "ds/each");
    set_version(kubectl, "sts/many", "2");
    set_version(kubectl, "ds/each", "2");
    kubectl.run(["scale", "sts/many", "--replicas=3"]);
    cluster.kill();
    cluster.spawn();
    rolled_out(kubectl, "sts/many");
    rolled_out(kubectl, "ds/each");
    wait_for("three and two pods", MINUTE, || {
        let seen = (versions(kubectl, "many"), versions(kubectl, "each"), names(kubectl, "pods").len());
        if seen == ("2 2 2".into(), "2 2".into(), 5) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(names(kubectl, "controllerrevisions").len(), 4, "two revisions of each");
    let containers = |app: &str| {
        let running = [
            "ps",
            "-q",
            "--filter",
            "label=io.kubernetes.pod.namespace=lost",
            "--filter",
            "label=io.kubernetes.container.name=c",
        ];
        let ids = crate::support::docker(running);
        let named = ids.lines().filter(|id| {
            crate::support::docker(["inspect", "-f", "{{index .Config.Labels \"io.kubernetes.pod.name\"}}", id]).starts_with(app)
        });
        named.count()
    };
    assert_eq!((containers("many-"), containers("each-")), (3, 2), "one container a pod");
}
