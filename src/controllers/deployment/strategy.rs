//! The numbers of a rollout: how far it may go above and below the wanted number of pods, and shares of it.

use k8s_openapi::api::apps::v1::{Deployment, RollingUpdateDeployment};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::pods::{Round, scaled};
use super::sets::Set;

/// `spec.replicas`.
pub(super) fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Whether old pods go before new ones come.
pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn rolling(deployment: &Deployment) -> Option<RollingUpdateDeployment> {
    if is_recreate(deployment) {
        return None;
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    Some(strategy.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default())
}

/// (surge, unavailable), at least one of which is above 0: `ResolveFenceposts`.
fn fenceposts(rolling: &RollingUpdateDeployment, wanted: i32) -> (i32, i32) {
    let quarter = IntOrString::String("25%".to_owned());
    let surge = scaled(rolling.max_surge.as_ref().unwrap_or(&quarter), wanted, Round::Up);
    let unavailable = scaled(rolling.max_unavailable.as_ref().unwrap_or(&quarter), wanted, Round::Down);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// How many pods there may be above the wanted number.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    rolling(deployment).map_or(0, |rolling| fenceposts(&rolling, replicas(deployment)).0)
}

/// How many of the wanted pods may be unavailable.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    match rolling(deployment) {
        Some(rolling) if wanted > 0 => fenceposts(&rolling, wanted).1.min(wanted),
        _ => 0,
    }
}

/// How many pods the new set should have now: `NewRSNewReplicas`.
pub(super) fn new_set_size(deployment: &Deployment, total: i32, new: i32) -> i32 {
    let wanted = replicas(deployment);
    if is_recreate(deployment) {
        return wanted;
    }
    let room = wanted + max_surge(deployment) - total;
    if room <= 0 { new } else { new + room.min(wanted - new) }
}

/// The share of `to_add` (negative to remove) that falls to a set, of which `added` are given out already:
/// `GetReplicaSetProportion`.
pub(super) fn proportion(set: &Set, deployment: &Deployment, to_add: i32, added: i32) -> i32 {
    if set.replicas == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let (fraction, allowed) = (fraction(set, deployment), to_add - added);
    if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
}

fn fraction(set: &Set, deployment: &Deployment) -> i32 {
    let wanted = replicas(deployment);
    if wanted == 0 {
        return -set.replicas;
    }
    let from_status = || deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = set.max_annotation().unwrap_or_else(from_status);
    if before == 0 {
        return 0;
    }
    let now = f64::from(wanted + max_surge(deployment));
    let size = f64::from(set.replicas) * now / f64::from(before);
    // Sizes are far below the largest i32.
    #[allow(clippy::cast_possible_truncation)]
    let size = size.round() as i32;
    size - set.replicas
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(replicas: i32, surge: &Value, unavailable: &Value) -> Deployment {
        serde_json::from_value(json!({"spec": {"replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}}))
        .unwrap()
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down() {
        for (replicas, surge, unavailable, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (1, json!("25%"), json!("25%"), (1, 0)),
            (3, json!(0), json!("10%"), (0, 1)),
            (3, json!(2), json!(5), (2, 3)),
            (0, json!("50%"), json!("50%"), (0, 0)),
        ] {
            let deployment = deployment(replicas, &surge, &unavailable);
            assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), expected, "{replicas} {surge} {unavailable}");
        }
    }

    #[test]
    fn new_set_grows_into_the_surge() {
        let deployment = deployment(10, &json!(2), &json!(2));
        for (total, new, expected) in [(10, 0, 2), (12, 2, 2), (4, 4, 10), (11, 5, 6)] {
            assert_eq!(new_set_size(&deployment, total, new), expected, "{total} {new}");
        }
    }
}
