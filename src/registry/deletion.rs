//! What a delete does to an object: `rest.BeforeDelete` and the garbage collection finalizers of upstream's store, as a pure
//! function.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::change::has_spec_finalizers;
use crate::api::meta::{self, FOREGROUND, ORPHAN};
use crate::api::{ApiError, Kind, Object};

/// What happens to the dependents of an object that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What must be true of the object to be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
}

impl Preconditions {
    /// Checks them against the stored object.
    ///
    /// # Errors
    /// 409.
    pub(super) fn check(&self, kind: &dyn Kind, object: &Object) -> Result<(), ApiError> {
        let resource = kind.names().group_resource();
        if let Some(uid) = self.uid.as_deref().filter(|uid| *uid != object.uid()) {
            let why = format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                object.uid()
            );
            return Err(ApiError::conflict(&resource, object.name(), why));
        }
        if let Some(version) = self.resource_version.as_deref().filter(|version| *version != object.resource_version()) {
            let why = format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
                object.resource_version()
            );
            return Err(ApiError::conflict(&resource, object.name(), why));
        }
        Ok(())
    }
}

/// What to do with the stored object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plan {
    /// Remove it.
    Remove,
    /// Store this: it waits for finalizers or for its grace period.
    Mark(Object),
    /// Its deletion is under way already.
    Leave,
}

/// Decides. `grace` is what the client asked for, `propagation` likewise.
pub(super) fn plan(
    kind: &dyn Kind,
    object: &Object,
    grace: Option<i64>,
    propagation: Option<Propagation>,
    now: Timestamp,
) -> Plan {
    let grace = grace.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let finalizers = finalizers(kind, object, propagation);
    let is_same = finalizers.iter().map(String::as_str).eq(object.finalizers());
    let mut marked = object.clone();
    if !is_same {
        meta::set_finalizers(&mut marked, &finalizers);
    }
    let holds = !finalizers.is_empty() || has_spec_finalizers(object);
    let period = object.get(&["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    match (object.is_deleting(), period) {
        (true, Some(period)) => match grace {
            // Only a shorter grace period may be asked for.
            Some(grace) if grace < period => {
                if grace == 0 && !holds {
                    return Plan::Remove;
                }
                let start = object.deletion_timestamp().unwrap_or(now).saturating_sub(SignedDuration::from_secs(period));
                set_deletion(&mut marked, start.unwrap_or(now), grace);
                Plan::Mark(marked)
            }
            _ if !is_same => Plan::Mark(marked),
            _ => Plan::Leave,
        },
        (true, None) if holds => {
            if is_same {
                Plan::Leave
            } else {
                Plan::Mark(marked)
            }
        }
        (true, None) => Plan::Remove,
        (false, _) => {
            let seconds = kind.deletion_grace_seconds(object, grace);
            if seconds.unwrap_or(0) <= 0 && !holds {
                return Plan::Remove;
            }
            set_deletion(&mut marked, now, seconds.unwrap_or(0).max(0));
            if object.generation() > 0 {
                marked.set(&["metadata", "generation"], object.generation() + 1);
            }
            if has_spec_finalizers(object) {
                marked.remove(&["metadata", "deletionGracePeriodSeconds"]);
                marked.set(&["status", "phase"], "Terminating");
            }
            Plan::Mark(marked)
        }
    }
}

fn set_deletion(object: &mut Object, start: Timestamp, seconds: i64) {
    let end = start.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(start);
    object.set(&["metadata", "deletionTimestamp"], meta::time_text(end));
    object.set(&["metadata", "deletionGracePeriodSeconds"], seconds);
}

/// The finalizers that the object waits for, with those of garbage collection as the client wants them.
fn finalizers(kind: &dyn Kind, object: &Object, propagation: Option<Propagation>) -> Vec<String> {
    let has = |name: &str| object.finalizers().any(|finalizer| finalizer == name);
    let wanted = match propagation {
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Background) => None,
        None if has(ORPHAN) => Some(ORPHAN),
        None if has(FOREGROUND) => Some(FOREGROUND),
        None if kind.orphans_by_default() => Some(ORPHAN),
        None => None,
    };
    let others = object.finalizers().filter(|name| !matches!(*name, ORPHAN | FOREGROUND));
    others.chain(wanted).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::Kinds;

    #[test]
    fn plans() {
        let kinds = Kinds::builtin();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let object = |meta: Value| Object(json!({"metadata": meta}).as_object().unwrap().clone());
        let config_map = kinds.find("", "v1", "configmaps").unwrap();
        let remove = |meta: Value, propagation| plan(&*config_map, &object(meta), None, propagation, now);
        assert_eq!(remove(json!({"name": "a"}), None), Plan::Remove);
        let Plan::Mark(marked) = remove(json!({"name": "a", "finalizers": ["x/y"]}), None) else { panic!("not marked") };
        assert_eq!(marked.get(&["metadata", "deletionTimestamp"]), Some(&json!("2026-01-01T00:00:00Z")));
        assert_eq!(marked.get(&["metadata", "deletionGracePeriodSeconds"]), Some(&json!(0)));
        let Plan::Mark(marked) = remove(json!({"name": "a"}), Some(Propagation::Foreground)) else { panic!("not marked") };
        assert_eq!(marked.finalizers().collect::<Vec<_>>(), [FOREGROUND]);
        assert_eq!(remove(json!({"name": "a", "finalizers": [ORPHAN]}), Some(Propagation::Background)), Plan::Remove);
        let deleting = json!({"name": "a", "finalizers": ["x/y"], "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0});
        assert_eq!(remove(deleting, None), Plan::Leave);
    }

    #[test]
    fn a_pod_has_grace_and_may_only_shorten_it() {
        let kinds = Kinds::builtin();
        let pod = kinds.find("", "v1", "pods").unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let running = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "generation": 1},
            "spec": {"nodeName": "n", "containers": [], "terminationGracePeriodSeconds": 30}});
        let object: Object = serde_json::from_value(running).unwrap();
        let Plan::Mark(marked) = plan(&*pod, &object, None, None, now) else { panic!("not marked") };
        assert_eq!(marked.get(&["metadata", "deletionTimestamp"]), Some(&json!("2026-01-01T00:00:30Z")));
        assert_eq!(marked.generation(), 2);
        assert_eq!(plan(&*pod, &marked, Some(40), None, now), Plan::Leave);
        let Plan::Mark(sooner) = plan(&*pod, &marked, Some(5), None, now) else { panic!("not marked") };
        assert_eq!(sooner.get(&["metadata", "deletionTimestamp"]), Some(&json!("2026-01-01T00:00:05Z")));
        assert_eq!(plan(&*pod, &sooner, Some(0), None, now), Plan::Remove);
        assert_eq!(plan(&*pod, &object, Some(0), None, now), Plan::Remove);
    }
}
