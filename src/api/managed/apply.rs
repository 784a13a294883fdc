//! Server-side apply on one object: merge, remove what the manager no longer applies, find the conflicts.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::remove::remove_from;
use super::track::{self, Change, unowned};
use super::{Comparison, Element, Entry, Managed, Manager, Operation, Rule, Set, fields, path_text};
use crate::api::status::{ApiError, Cause, Reason};
use crate::api::{Object, patch};

/// The manager whose apply goes on from what `kubectl apply` without a server's help did.
const KUBECTL: &str = "kubectl";
/// The manager that `kubectl apply` is without a server's help.
const CLIENT_SIDE: &str = "kubectl-client-side-apply";
/// Whose the fields are that were there before anybody applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The annotation with what `kubectl apply` applied last.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Upstream's limit for all annotations; a longer one is left out.
const LAST_APPLIED_BYTES_MAX: usize = 256 << 10;

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub manager: Manager,
    pub path: Vec<Element>,
}

/// What is applied to what.
pub struct Apply<'a> {
    /// The stored object; an empty map where there is none.
    pub live: &'a Object,
    /// The object as the manager wants it.
    pub config: &'a Object,
    pub rule: Rule,
    pub manager: &'a Manager,
    /// Take fields from their owners.
    pub force: bool,
    /// Fields that this write can't change.
    pub reset: &'a Set,
    /// RFC 3339.
    pub now: &'a str,
}

/// What an apply comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The merged object; `None` when it is as it was.
    pub object: Option<Object>,
    pub managed: Managed,
}

impl Apply<'_> {
    /// Applies.
    ///
    /// # Errors
    /// The conflicts, sorted by manager.
    pub fn run(&self, managed: Managed) -> Result<Applied, Vec<Conflict>> {
        match self.merge(managed.clone(), self.force) {
            Err(conflicts) if self.manager.name == KUBECTL => {
                let allowed = last_applied(self.live, self.rule, |_| {}).unwrap_or_default();
                let refused: Vec<Conflict> = conflicts.into_iter().filter(|one| !allowed.has(&one.path)).collect();
                if refused.is_empty() { self.merge(managed, true).map(|done| self.annotate(done)) } else { Err(refused) }
            }
            outcome => outcome.map(|done| self.annotate(done)),
        }
    }

    fn merge(&self, mut managed: Managed, force: bool) -> Result<Applied, Vec<Conflict>> {
        let merged = patch::apply::merge_objects(&self.live.0, &self.config.0, self.rule);
        let last = managed.take(self.manager);
        let fields = fields::of_object(&self.config.0, self.rule).recursive_difference(self.reset);
        let time = last.as_ref().and_then(|entry| entry.time.clone());
        managed.put(Entry { manager: self.manager.clone(), time, fields });
        let merged = match last {
            Some(last) if !last.fields.is_empty() => self.prune(merged, &managed, &last.fields),
            _ => merged,
        };
        let mut managed = self.take_over(&merged, managed, force)?;
        let object = (merged != self.live.0).then_some(Object(merged));
        if let Some(mut own) = managed.take(self.manager) {
            own.fields = own.fields.difference(&unowned());
            if object.is_some() {
                own.time = Some(self.now.to_owned());
            }
            managed.put(own);
        }
        managed.drop_empty();
        Ok(Applied { object, managed })
    }

    /// Removes what the manager applied last time, does not apply now, and nobody else owns.
    fn prune(&self, merged: Map<String, Value>, managed: &Managed, last: &Set) -> Map<String, Value> {
        let rule = self.rule;
        let last = last.with_named(rule);
        let mut pruned = merged.clone();
        remove_from(&mut pruned, &last, rule);
        let merged_fields = fields::of_object(&merged, rule).with_named(rule);
        let owned = managed.entries.iter().fold(Set::default(), |all, entry| all.union(&entry.fields)).with_named(rule);
        let kept = fields::of_object(&pruned, rule).with_named(rule).union(&owned);
        let mut with_owned = merged.clone();
        remove_from(&mut with_owned, &merged_fields.difference(&kept), rule);
        let kept = fields::of_object(&with_owned, rule).with_named(rule);
        let mut out = merged;
        remove_from(&mut out, &merged_fields.difference(&kept).intersection(&last), rule);
        out
    }

    /// Moves what changed from the other managers to this one.
    fn take_over(&self, merged: &Map<String, Value>, mut managed: Managed, force: bool) -> Result<Managed, Vec<Conflict>> {
        let comparison = Comparison::new(&self.live.0, merged, self.rule).excluding(self.reset);
        let changed = comparison.changed();
        let mut conflicts = Vec::new();
        for entry in managed.entries.iter_mut().filter(|entry| !entry.manager.is_same(self.manager)) {
            let contested = entry.fields.intersection(&changed);
            conflicts.extend(contested.paths().into_iter().map(|path| Conflict { manager: entry.manager.clone(), path }));
            entry.fields = entry.fields.difference(&contested).difference(&comparison.removed);
        }
        if !force && !conflicts.is_empty() {
            conflicts.sort_by_key(|conflict| conflict.manager.to_string());
            return Err(conflicts);
        }
        managed.drop_empty();
        Ok(managed)
    }

    /// Keeps the annotation of `kubectl apply` right where there is one, so that its next run without a server's help sees it.
    fn annotate(&self, mut applied: Applied) -> Applied {
        let object = applied.object.as_ref().unwrap_or(self.live);
        let current = object.annotation(LAST_APPLIED).unwrap_or("");
        if self.manager.name != KUBECTL || current.is_empty() {
            return applied;
        }
        let mut config = self.config.clone();
        config.remove(&["metadata", "annotations", LAST_APPLIED]);
        let text = format!("{}\n", Value::Object(config.0));
        if text != current {
            let mut object = object.clone();
            if text.len() > LAST_APPLIED_BYTES_MAX {
                object.remove(&["metadata", "annotations", LAST_APPLIED]);
            } else {
                object.set(&["metadata", "annotations", LAST_APPLIED], text);
            }
            applied.object = Some(object);
        }
        applied
    }
}

/// The fields of the annotation of `kubectl apply` that still have its values. `complete` fills in defaults.
fn last_applied(live: &Object, rule: Rule, complete: impl FnOnce(&mut Object)) -> Option<Set> {
    let mut config: Object = serde_json::from_str(live.annotation(LAST_APPLIED)?).ok()?;
    if config.api_version() != live.api_version() {
        return None;
    }
    complete(&mut config);
    let differs = Comparison::new(&config.0, &live.0, rule);
    Some(fields::of_object(&config.0, rule).difference(&differs.changed()).difference(&differs.removed))
}

/// The owners of an object at the first apply to it: `kubectl apply` owns what it applied and that was defaulted for it, the rest is
/// owned by `before-first-apply`. `complete` fills in the kind's defaults.
pub fn first_owners(
    live: &Object,
    rule: Rule,
    writer: &Manager,
    reset: &Set,
    now: &str,
    complete: impl FnOnce(&mut Object),
) -> Managed {
    let updater = |name: &str| Manager { name: name.to_owned(), operation: Operation::Update, ..writer.clone() };
    let nothing = Map::new();
    let change = Change { old: &nothing, new: &live.0, rule, reset, now };
    let all = track::update(&change, Managed::default(), updater(BEFORE_FIRST_APPLY));
    let Some(entry) = all.entries.into_iter().next() else { return Managed::default() };
    let mut managed = Managed::default();
    let mut rest = entry.fields.clone();
    if let Some(applied) = last_applied(live, rule, complete) {
        let mut client_side = applied.intersection(&entry.fields);
        client_side.insert(&["metadata", "annotations", LAST_APPLIED].map(Element::field));
        rest = rest.difference(&client_side);
        managed.put(Entry { manager: updater(CLIENT_SIDE), time: entry.time.clone(), fields: client_side });
    }
    managed.put(Entry { fields: rest, ..entry });
    managed.drop_empty();
    managed
}

/// 409 for conflicts, in upstream's words.
pub fn conflict_error(conflicts: &[Conflict]) -> ApiError {
    let message = match conflicts {
        [only] => format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, path_text(&only.path)),
        many => {
            let managers: BTreeSet<String> = many.iter().map(|one| one.manager.to_string()).collect();
            let mut lines = Vec::new();
            for manager in managers {
                lines.push(format!("conflicts with {manager}:"));
                let paths = many.iter().filter(|one| one.manager.to_string() == manager);
                lines.extend(paths.map(|one| format!("- {}", path_text(&one.path))));
            }
            format!("Apply failed with {} conflicts: {}", many.len(), lines.join("\n"))
        }
    };
    let mut error = ApiError::new(409, Reason::Conflict, message);
    error.details.causes = conflicts
        .iter()
        .map(|one| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {}", one.manager),
            field: path_text(&one.path),
        })
        .collect();
    error
}
