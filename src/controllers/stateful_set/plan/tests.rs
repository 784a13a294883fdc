//! Tables: what a set looks like, and what is done about it.

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-01T00:01:00Z";

fn set(spec: Value) -> StatefulSet {
    let mut set = json!({"metadata": {"name": "db", "namespace": "a", "uid": "set", "generation": 4}, "spec": {"replicas": 3,
        "selector": {"matchLabels": {"app": "db"}}, "serviceName": "dbs", "podManagementPolicy": "OrderedReady",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}, "template": {}}});
    for (key, value) in spec.as_object().unwrap() {
        set["spec"][key] = value.clone();
    }
    serde_json::from_value(set).unwrap()
}

fn revision(name: &str) -> Revision {
    let template = json!({"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": name}],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
    Revision { name: name.to_owned(), template: serde_json::from_value(template).unwrap() }
}

/// `0:new` is ready; with `!` not ready, `~` terminating, `F` failed, `S` succeeded, `P` pending, `.` ready for 10 s only.
fn pod(text: &str) -> Arc<Pod> {
    let (ordinal, rest) = text.split_once(':').unwrap();
    let revision = rest.trim_end_matches(['!', '~', 'F', 'S', 'P', '.']);
    let marks = &rest[revision.len()..];
    let phase = match marks {
        "F" => "Failed",
        "S" => "Succeeded",
        "P" => "Pending",
        _ => "Running",
    };
    let is_ready = phase == "Running" && !marks.contains('!');
    let since = if marks.contains('.') { "2026-01-01T00:00:50Z" } else { "2026-01-01T00:00:00Z" };
    let name = format!("db-{ordinal}");
    let mut pod = json!({"metadata": {"name": name, "namespace": "a", "uid": format!("uid-{ordinal}"), "labels": {"app": "db",
            "controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": name}},
        "spec": {"containers": [], "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{name}")}}]},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if is_ready { "True" } else { "False" },
            "lastTransitionTime": since}]}});
    if marks.contains('~') {
        pod["metadata"]["deletionTimestamp"] = json!(NOW);
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn describe(step: &Step) -> String {
    let name = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| name_of(meta).to_owned();
    match step {
        Step::CreateClaim(_, claim) => format!("claim {}", name(&claim.metadata)),
        Step::AwaitClaim(_, claim) => format!("await {claim}"),
        Step::OwnClaim(claim, owners) => {
            format!(
                "own {} {}",
                name(&claim.metadata),
                owners.iter().map(|owner| owner.uid.as_str()).collect::<Vec<_>>().join("+")
            )
        }
        Step::CreatePod(pod) => format!("create {}={}", name(&pod.metadata), pod::revision_of(pod)),
        Step::CorrectPod(pod, _) => format!("correct {}", name(&pod.metadata)),
        Step::DeletePod(pod, Why::Unwanted) => format!("delete {}", name(&pod.metadata)),
        Step::DeletePod(pod, why) => format!("delete {} {why:?}", name(&pod.metadata)),
    }
}

fn planned(set: &StatefulSet, pods: &str, claims: &[PersistentVolumeClaim]) -> (String, Plan) {
    let find = |name: &str| claims.iter().find(|claim| name_of(&claim.metadata) == name).cloned().map(Arc::new);
    let plan = plan(&Observed {
        set,
        current: &revision("old"),
        update: &revision("new"),
        pods: pods.split_whitespace().map(pod).collect(),
        claim: &find,
        now: NOW.parse().unwrap(),
    });
    let steps: Vec<String> = plan.stages.iter().flatten().flatten().map(describe).collect();
    (steps.join(", "), plan)
}

#[track_caller]
fn check(spec: Value, table: &[(&str, &str)]) {
    let set = set(spec.clone());
    for (pods, expected) in table {
        assert_eq!(planned(&set, pods, &[]).0, *expected, "{spec}: {pods}");
    }
}

#[test]
fn ordered_sets_go_one_by_one() {
    check(
        json!({}),
        &[
            ("", "create db-0=new"),
            ("0:new!", ""),
            ("0:newP", ""),
            ("0:new", "create db-1=new"),
            ("0:new 1:new 2:new", ""),
            // A gap is filled, whatever comes after it.
            ("1:new 2:new", "create db-0=new"),
            ("0:new~ 1:new 2:new", ""),
            ("0:newF 1:new", "delete db-0 Failed"),
            ("0:new 1:newS 2:new", "delete db-1 Succeeded"),
            // Too many: the last first, when all are well.
            ("0:new 1:new 2:new 3:new 4:new", "delete db-4"),
            ("0:new 1:new 2:new 3:new 4:new~", ""),
            ("0:new 1:new 2:new! 3:new 4:new", ""),
            ("0:new 1:new 2:new 3:new 4:new!", "delete db-4"),
            ("0:new 1:new 2:new 3:new! 4:new!", ""),
            // Not named as the set's pods are.
            ("0:new 1:new 2:new x:new 03:new", ""),
        ],
    );
    check(json!({"minReadySeconds": 30}), &[("0:new.", ""), ("0:new", "create db-1=new")]);
    check(
        json!({"ordinals": {"start": 5}, "replicas": 2}),
        &[("", "create db-5=new"), ("5:new 6:new", ""), ("5:new 6:new 0:new", "delete db-0"), ("5:new", "create db-6=new")],
    );
    check(json!({"replicas": 0}), &[("0:new 1:new", "delete db-1"), ("0:new", "delete db-0"), ("", "")]);
}

#[test]
fn parallel_sets_go_at_once() {
    check(
        json!({"podManagementPolicy": "Parallel"}),
        &[
            ("", "create db-0=new, create db-1=new, create db-2=new"),
            ("1:new!", "create db-0=new, create db-2=new"),
            ("0:newF 1:new! 2:newP 3:new 4:new!", "delete db-0 Failed, delete db-4, delete db-3"),
            ("0:new~ 1:new 2:new 3:new~", ""),
            // A pod of the old revision that never serves does not block its own repair.
            ("0:old! 1:new 2:new", "delete db-0"),
            ("0:old 1:old 2:new!", ""),
        ],
    );
}

#[test]
fn updates_go_from_the_last_to_the_first() {
    let rolling = |more: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": more}});
    check(
        rolling(json!({"partition": 0})),
        &[
            ("0:old 1:old 2:old", "delete db-2"),
            ("0:old 1:old 2:old~", ""),
            ("0:old 1:old", "create db-2=new"),
            ("0:old 1:old 2:new!", ""),
            ("0:old 1:old 2:new", "delete db-1"),
            ("0:old 1:old 2:old 3:old", "delete db-3"),
        ],
    );
    check(
        rolling(json!({"partition": 2})),
        &[
            ("0:old 1:old 2:old", "delete db-2"),
            ("0:old 1:old 2:new", ""),
            ("1:old 2:new", "create db-0=old"),
            ("0:old 1:old", "create db-2=new"),
        ],
    );
    check(rolling(json!({"partition": 9})), &[("0:old 1:old 2:old", ""), ("0:old 1:old", "create db-2=old")]);
    check(
        rolling(json!({"maxUnavailable": 2})),
        &[("0:old 1:old 2:old", "delete db-2, delete db-1"), ("0:old 1:old~ 2:old", "")],
    );
    let mut parallel = rolling(json!({"maxUnavailable": "50%"}));
    parallel["podManagementPolicy"] = json!("Parallel");
    check(parallel, &[("0:old 1:old~ 2:old", "delete db-2"), ("0:old 1:old~ 2:new!", "")]);
    check(json!({"updateStrategy": {"type": "OnDelete"}}), &[("0:old 1:old 2:old", ""), ("0:old 1:old", "create db-2=new")]);
}

#[test]
fn a_huge_set_is_made_in_parts() {
    let huge = set(json!({"replicas": i32::MAX, "podManagementPolicy": "Parallel"}));
    let (steps, plan) = planned(&huge, "1:new 700:new", &[]);
    assert_eq!((steps.split(", ").count(), plan.stages[0].len()), (BURST, BURST));
    assert!(steps.starts_with("create db-0=new, create db-2=new,") && steps.ends_with("create db-500=new"), "{steps}");
}

fn with_claims(policy: (&str, &str)) -> StatefulSet {
    set(json!({"replicas": 1, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy.0, "whenScaled": policy.1},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}))
}

fn claim(name: &str, more: Value) -> PersistentVolumeClaim {
    let mut claim = json!({"metadata": {"name": name, "namespace": "a"}});
    for (key, value) in more.as_object().unwrap() {
        claim["metadata"][key] = value.clone();
    }
    serde_json::from_value(claim).unwrap()
}

#[test]
fn claims_come_before_their_pod_and_go_as_the_policy_says() {
    let there = || claim("data-db-0", json!({}));
    let going = claim("data-db-0", json!({"deletionTimestamp": NOW}));
    let of_earlier_pod =
        claim("data-db-0", json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "db-0", "uid": "earlier"}]}));
    let second = claim("data-db-1", json!({}));
    for (policy, pods, claims, expected) in [
        (("Retain", "Retain"), "", vec![], "claim data-db-0, create db-0=new"),
        (("Retain", "Retain"), "", vec![there()], "create db-0=new"),
        (("Retain", "Retain"), "", vec![going], "await data-db-0, create db-0=new"),
        (("Retain", "Retain"), "0:newP", vec![], "claim data-db-0"),
        (("Retain", "Retain"), "0:new 1:new", vec![there(), second.clone()], "delete db-1"),
        (("Delete", "Retain"), "", vec![there()], "own data-db-0 set, create db-0=new"),
        (("Delete", "Retain"), "0:new", vec![there()], "own data-db-0 set"),
        (("Retain", "Delete"), "0:new 1:new", vec![there(), second], "own data-db-1 uid-1, delete db-1"),
        (("Retain", "Delete"), "", vec![of_earlier_pod], ""),
    ] {
        assert_eq!(planned(&with_claims(policy), pods, &claims).0, expected, "{policy:?} {pods}");
    }
}

#[test]
fn a_new_pod_has_its_name_everywhere() {
    let (_, plan) = planned(&with_claims(("Retain", "Retain")), "", &[]);
    let Some(Step::CreatePod(pod)) = plan.stages.iter().flatten().flatten().last() else { panic!("{:?}", plan.stages) };
    let pod = serde_json::to_value(pod).unwrap();
    let labels = json!({"app": "db", "controller-revision-hash": "new", "statefulset.kubernetes.io/pod-name": "db-0",
        "apps.kubernetes.io/pod-index": "0"});
    assert_eq!(pod["metadata"]["labels"], labels);
    assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("db-0"), &json!("dbs")));
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}, {"name": "tmp", "emptyDir": {}}]);
    assert_eq!(pod["spec"]["volumes"], volumes);
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "set");
}

#[test]
fn a_pod_without_its_label_or_volume_is_corrected() {
    let mut bare = Pod::clone(&pod("0:new"));
    assert_eq!(pod::correction(&with_claims(("Retain", "Retain")), &bare, 0), None);
    bare.metadata.labels = None;
    let patch = pod::correction(&with_claims(("Retain", "Retain")), &bare, 0).unwrap();
    assert_eq!((&patch["metadata"]["labels"]["apps.kubernetes.io/pod-index"], patch.get("spec")), (&json!("0"), None));
    bare.spec = None;
    let patch = pod::correction(&with_claims(("Retain", "Retain")), &bare, 0).unwrap();
    assert_eq!(patch["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-db-0");
}

#[test]
fn status_counts() {
    let numbers = |spec: Value, pods: &str| {
        let plan = planned(&set(spec), pods, &[]).1;
        let status = plan.status;
        let count = |count: Option<i32>| count.unwrap_or(0);
        assert_eq!((status.observed_generation, status.collision_count), (Some(4), Some(0)));
        let revisions = [status.current_revision.unwrap(), status.update_revision.unwrap()].join("/");
        let numbers = [
            status.replicas,
            count(status.ready_replicas),
            count(status.available_replicas),
            count(status.current_replicas),
            count(status.updated_replicas),
        ];
        (numbers, revisions, plan.look_again.map(|wait| wait.as_secs()))
    };
    for (spec, pods, expected) in [
        (json!({}), "", ([0, 0, 0, 0, 0], "old/new", None)),
        // db-2 is about to be deleted: it is current no more.
        (json!({}), "0:old 1:old 2:old", ([3, 3, 3, 2, 0], "old/new", None)),
        (json!({}), "0:old 1:old! 2:new~", ([3, 2, 2, 2, 0], "old/new", None)),
        (json!({}), "0:new 1:new 2:new", ([3, 3, 3, 3, 3], "new/new", None)),
        (json!({"updateStrategy": {"type": "OnDelete"}}), "0:new 1:new 2:new", ([3, 3, 3, 0, 3], "old/new", None)),
        (json!({"minReadySeconds": 30}), "0:new. 1:new 2:new", ([3, 3, 2, 3, 3], "new/new", Some(20))),
    ] {
        let (counts, revisions, look_again) = numbers(spec.clone(), pods);
        assert_eq!((counts, revisions.as_str(), look_again), expected, "{spec}: {pods}");
    }
}
