//! Tables of rollouts.

use serde_json::{Value, json};

use super::*;

const NOW: &str = "2026-01-01T01:00:00Z";

fn deployment(replicas: i32, strategy: &Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "a", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "revisionHistoryLimit": 1, "progressDeadlineSeconds": 600,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "new"}]}}},
    }))
    .unwrap()
}

fn rolling(surge: i32, unavailable: i32) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// A set of `age` (bigger is older) whose annotation says that `desired` pods were wanted.
fn set(deployment: &Deployment, image: &str, age: i64, replicas: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
    let mut of = deployment.clone();
    of.spec.as_mut().unwrap().replicas = Some(desired);
    of.spec.as_mut().unwrap().template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
    let mut set = Set::planned(&of);
    set.follow(&of, 10 - age);
    set.scale(replicas, &of);
    let mut object = set.to_object();
    object.metadata.name = Some(image.to_owned());
    let created: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    object.metadata.creation_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created - jiff::SignedDuration::from_secs(age)));
    object.status =
        serde_json::from_value(json!({"replicas": replicas, "readyReplicas": available, "availableReplicas": available}))
            .unwrap();
    Arc::new(object)
}

fn run(deployment: &Deployment, sets: Vec<Arc<ReplicaSet>>, old_pods_run: bool) -> Plan {
    plan(Observed { deployment, sets, old_pods_run, now: NOW.parse().unwrap() })
}

fn sizes(plan: &Plan) -> Vec<(&str, i32)> {
    plan.change.iter().filter(|set| set.replicas != set.replicas_before()).map(|set| (set.name(), set.replicas)).collect()
}

fn reason<'a>(plan: &'a Plan, kind: &str) -> &'a str {
    let conditions = plan.status.conditions.as_ref().unwrap();
    conditions.iter().find(|condition| condition.type_ == kind).and_then(|found| found.reason.as_deref()).unwrap_or("")
}

#[test]
fn a_new_deployment_gets_its_set() {
    let deployment = deployment(3, &rolling(1, 1));
    let plan = run(&deployment, vec![], false);
    let create = plan.create.as_ref().unwrap();
    assert_eq!((create.replicas, plan.revision), (3, Some(1)));
    assert_eq!(reason(&plan, "Progressing"), "NewReplicaSetCreated");
    assert_eq!(reason(&plan, "Available"), "MinimumReplicasUnavailable");
    assert_eq!(plan.look_again, Some(Duration::from_secs(601)));
}

#[test]
fn steps_of_a_rolling_update() {
    // (surge, unavailable), (old size, old available), (new size, new available), what changes
    for ((surge, unavailable), (old, old_ready), (new, new_ready), expected) in [
        ((1, 0), (3, 3), (1, 0), vec![]),
        ((1, 0), (3, 3), (1, 1), vec![("old", 2)]),
        ((1, 0), (2, 2), (1, 1), vec![("new", 2)]),
        ((0, 1), (3, 3), (0, 0), vec![("old", 2)]),
        ((0, 1), (2, 2), (0, 0), vec![("new", 1)]),
        ((1, 1), (3, 1), (1, 0), vec![("old", 2)]),
        ((1, 0), (1, 1), (3, 3), vec![("old", 0)]),
        ((1, 0), (0, 0), (3, 3), vec![]),
    ] {
        let deployment = deployment(3, &rolling(surge, unavailable));
        let sets = vec![set(&deployment, "old", 1, old, old_ready, 3), set(&deployment, "new", 0, new, new_ready, 3)];
        let plan = run(&deployment, sets, false);
        assert_eq!(sizes(&plan), expected, "{surge}/{unavailable} old {old}/{old_ready} new {new}/{new_ready}");
        assert!(plan.create.is_none());
    }
}

#[test]
fn unhealthy_old_pods_go_before_the_new_set_is_ready() {
    let deployment = deployment(10, &rolling(2, 2));
    let sets = vec![set(&deployment, "old", 1, 8, 3, 10), set(&deployment, "new", 0, 4, 4, 10)];
    // 12 pods, 8 must be available: 4 may go, all of them unhealthy.
    assert_eq!(sizes(&run(&deployment, sets, false)), [("old", 4)]);
}

#[test]
fn scaling_during_a_rollout_is_proportional() {
    for (desired, expected) in [(20, [("old", 13), ("new", 9)]), (5, [("old", 4), ("new", 3)])] {
        let deployment = deployment(desired, &rolling(2, 2));
        let sets = vec![set(&deployment, "old", 1, 7, 7, 10), set(&deployment, "new", 0, 5, 5, 10)];
        let plan = run(&deployment, sets, false);
        let mut changed = sizes(&plan);
        changed.sort_by_key(|(name, _)| std::cmp::Reverse(*name));
        assert_eq!(changed, expected);
    }
}

#[test]
fn one_set_scales_alone() {
    let deployment = deployment(5, &rolling(1, 1));
    let sets = vec![set(&deployment, "new", 0, 3, 3, 3)];
    assert_eq!(sizes(&run(&deployment, sets, false)), [("new", 5)]);
}

#[test]
fn recreate_waits_for_old_pods() {
    let deployment = deployment(3, &json!({"type": "Recreate"}));
    let old = |size| set(&deployment, "old", 1, size, size, 3);
    let first = run(&deployment, vec![old(3)], true);
    assert_eq!((sizes(&first), first.create.is_none()), (vec![("old", 0)], true));
    assert!(run(&deployment, vec![old(0)], true).create.is_none());
    assert_eq!(run(&deployment, vec![old(0)], false).create.map(|set| set.replicas), Some(3));
}

#[test]
fn paused_deployments_scale_but_do_not_roll() {
    let mut deployment = deployment(5, &rolling(1, 1));
    deployment.spec.as_mut().unwrap().paused = Some(true);
    let plan = run(&deployment, vec![set(&deployment, "old", 1, 3, 3, 3)], false);
    assert_eq!((sizes(&plan), plan.create.is_none()), (vec![("old", 5)], true));
    assert_eq!(reason(&plan, "Progressing"), "DeploymentPaused");
}

#[test]
fn completion_cleans_up_and_a_rollback_takes_the_old_set() {
    let mut deployment = deployment(3, &rolling(1, 1));
    let sets =
        vec![set(&deployment, "oldest", 3, 0, 0, 3), set(&deployment, "older", 2, 0, 0, 3), set(&deployment, "new", 0, 3, 3, 3)];
    let first = run(&deployment, sets.clone(), false);
    assert_eq!((reason(&first, "Progressing"), first.delete.len()), ("NewReplicaSetAvailable", 0));
    deployment.status = Some(first.status);
    let second = run(&deployment, sets.clone(), false);
    assert_eq!(second.delete.iter().filter_map(|set| set.metadata.name.as_deref()).collect::<Vec<_>>(), ["oldest"]);
    let template = sets[1].spec.clone().unwrap().template.unwrap();
    deployment.spec.as_mut().unwrap().template = template;
    let rollback = run(&deployment, sets, false);
    assert_eq!((rollback.create.is_none(), rollback.revision), (true, Some(11)));
    assert_eq!(sizes(&rollback), [("older", 1)]);
}

#[test]
fn no_progress_times_out() {
    let mut deployment = deployment(3, &rolling(1, 0));
    let condition = json!([{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
        "lastUpdateTime": "2026-01-01T00:00:00Z"}]);
    let status = json!({"replicas": 1, "updatedReplicas": 1, "unavailableReplicas": 2, "conditions": condition});
    deployment.status = serde_json::from_value(status).unwrap();
    let plan = run(&deployment, vec![set(&deployment, "new", 0, 1, 0, 3)], false);
    assert_eq!(reason(&plan, "Progressing"), "ProgressDeadlineExceeded");
}
