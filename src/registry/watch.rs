//! Watch: the changes of a selection, each exactly once and in order (`storage/cacher`).

use std::collections::VecDeque;
use std::sync::Arc;

use super::list::{check_fields, invalid_options, matches, parse_revision, too_large};
use super::{ListOptions, Registry, encode, prefix};
use crate::api::field::{FieldError, Path};
use crate::api::{ApiError, Kind};
use crate::store::{Change, Entry, Event, Expired, Indexed, Revision, Snapshot, Watch};

/// What a watch asks for.
#[derive(Debug, Clone, Default)]
pub struct WatchOptions {
    /// Selectors, `resourceVersion` and `resourceVersionMatch`; the rest is not used.
    pub list: ListOptions,
    /// `sendInitialEvents`, if the client said.
    pub send_initial_events: Option<bool>,
    pub allow_bookmarks: bool,
}

/// One event of a watch. The bytes of entries are shared by all watchers.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    Added(Arc<Entry>),
    Modified(Arc<Entry>),
    Deleted(Arc<Entry>),
    /// Everything up to the revision was sent; `ends_initial` marks the end of the initial events.
    Bookmark {
        revision: Revision,
        ends_initial: bool,
    },
}

/// A running watch.
pub struct WatchStream {
    /// Sent before what `changes` yields.
    initial: VecDeque<WatchEvent>,
    changes: Watch,
    selection: ListOptions,
    is_everything: bool,
}

impl Registry {
    /// Starts a watch; namespace "" means all.
    ///
    /// # Errors
    /// 400 and 422 for options that make no sense, 410 when the revision is too old, 504 when it is from the future.
    pub fn watch(&self, kind: &dyn Kind, namespace: &str, options: WatchOptions) -> Result<WatchStream, ApiError> {
        check_options(&options)?;
        check_fields(kind, &options.list.fields)?;
        let prefix = prefix(kind, namespace);
        let newest = self.store.snapshot();
        let version = options.list.resource_version.as_str();
        let wanted = if version.is_empty() { 0 } else { parse_revision(version)? };
        if wanted > newest.revision() {
            return Err(too_large(wanted, newest.revision()));
        }
        let from_now = wanted == 0 || options.send_initial_events == Some(true);
        let with_state = options.send_initial_events.unwrap_or(wanted == 0);
        let from = if from_now { newest.revision() } else { wanted };
        let changes = self.store.watch(&prefix, from).map_err(|expired| too_old(&expired))?;
        let changes = narrowed(changes, &options.list);
        let is_everything = options.list.labels.is_everything() && options.list.fields.is_empty();
        let mut initial = VecDeque::new();
        if with_state {
            initial = initial_events(&newest, &prefix, &options.list);
            if options.send_initial_events == Some(true) && options.allow_bookmarks {
                initial.push_back(WatchEvent::Bookmark { revision: newest.revision(), ends_initial: true });
            }
        }
        Ok(WatchStream { initial, changes, selection: options.list, is_everything })
    }
}

/// A watch of one name, or of one value of an indexed field or label, is woken by its own changes only.
fn narrowed(changes: Watch, selection: &ListOptions) -> Watch {
    let exact = || selection.fields.requirements.iter().filter(|term| term.equals);
    if let Some(name) = exact().find(|term| term.field == "metadata.name") {
        return changes.narrowed_to_name(&name.value);
    }
    match (exact().find(|term| term.field != "metadata.namespace"), selection.labels.exact().next()) {
        (Some(term), _) => changes.narrowed_to(Indexed::Field, &term.field, &term.value),
        (None, Some((key, value))) => changes.narrowed_to(Indexed::Label, key, value),
        (None, None) => changes,
    }
}

fn initial_events(snapshot: &Snapshot, prefix: &str, selection: &ListOptions) -> VecDeque<WatchEvent> {
    let selected = snapshot.range(prefix, None).filter(|entry| matches(entry, selection));
    selected.map(|entry| WatchEvent::Added(Arc::clone(entry))).collect()
}

impl WatchStream {
    /// What is waiting, at least one event; `None` when the store is closed. Cancel-safe.
    ///
    /// # Errors
    /// 410 (as an item) when this watch fell behind: list again.
    pub async fn next_batch(&mut self) -> Option<Result<Vec<WatchEvent>, ApiError>> {
        if !self.initial.is_empty() {
            return Some(Ok(std::mem::take(&mut self.initial).into()));
        }
        loop {
            let events = match self.changes.next_batch().await? {
                Ok(events) => events,
                Err(expired) => return Some(Err(too_old(&expired))),
            };
            let selected: Vec<WatchEvent> = events.into_iter().filter_map(|event| self.select(event)).collect();
            if !selected.is_empty() {
                return Some(Ok(selected));
            }
        }
    }

    /// The revision up to which everything was handed out: what a bookmark may say.
    pub fn progress(&self) -> Revision {
        self.changes.progress()
    }

    /// The event as this watcher sees it: an object that enters the selection is added, one that leaves it is deleted.
    fn select(&self, event: Event) -> Option<WatchEvent> {
        let is_in = |entry: &Entry| self.is_everything || matches(entry, &self.selection);
        match event.change {
            Change::Put { entry, previous } => match (previous.filter(|previous| is_in(previous)), is_in(&entry)) {
                (None, true) => Some(WatchEvent::Added(entry)),
                (Some(_), true) => Some(WatchEvent::Modified(entry)),
                (Some(previous), false) => Some(WatchEvent::Deleted(Arc::new(encode::with_revision(&previous, event.revision)))),
                (None, false) => None,
            },
            Change::Delete { last } => is_in(&last).then_some(WatchEvent::Deleted(last)),
        }
    }
}

fn too_old(expired: &Expired) -> ApiError {
    ApiError::expired(format!("too old resource version: {} ({})", expired.revision, expired.oldest))
}

fn check_options(options: &WatchOptions) -> Result<(), ApiError> {
    let path = || Path::new("resourceVersionMatch");
    let wanted = options.list.resource_version_match.as_str();
    let mut errors = Vec::new();
    match options.send_initial_events {
        Some(_) if wanted != "NotOlderThan" => {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(FieldError::forbidden(path(), why));
        }
        None if !wanted.is_empty() => {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(path(), why));
        }
        _ => {}
    }
    invalid_options(&errors)
}
