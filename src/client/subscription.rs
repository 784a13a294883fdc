//! Subscriptions to an informer: bounded, and never losing.
//!
//! What waits for a slow subscriber is merged per object: it holds at most one change an object, from the state that the
//! subscriber was last told to the newest one. So the changes that a subscriber sees of one object always form a chain
//! (`old` is the `new` before), memory is bounded by the number of objects, and there is no marker for "too slow, list again".

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::cache::ObjectKey;

/// What happened to an object, or to the informer.
#[derive(Debug)]
pub enum Change<T> {
    /// The object is there, as `new`; `old` is what this subscriber was told before, if it was told.
    /// The two may differ in uid: the object was deleted and made again in between.
    Applied { old: Option<Arc<T>>, new: Arc<T> },
    /// The object is gone; its last known state.
    Deleted(Arc<T>),
    /// Everything that was there when the informer started has been told. An informer that began with a snapshot says so twice: when
    /// that has been told, and when the first list has corrected it.
    Synced,
}

struct Pending<T> {
    /// What the subscriber was last told.
    told: Option<Arc<T>>,
    /// What is there now.
    now: Option<Arc<T>>,
}

enum Slot {
    Object(ObjectKey),
    Synced,
}

struct State<T> {
    order: VecDeque<Slot>,
    pending: HashMap<ObjectKey, Pending<T>>,
    closed: bool,
}

/// The queue between an informer and one subscriber.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    wake: Notify,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Arc<Self> {
        let state = State { order: VecDeque::new(), pending: HashMap::new(), closed: false };
        Arc::new(Self { state: Mutex::new(state), wake: Notify::new() })
    }

    /// Tells that the object went from `old` to `new`.
    pub(super) fn push(&self, key: &ObjectKey, old: Option<&Arc<T>>, new: Option<&Arc<T>>) {
        let mut state = self.state.lock();
        if let Some(pending) = state.pending.get_mut(key) {
            pending.now = new.cloned();
        } else {
            state.pending.insert(key.clone(), Pending { told: old.cloned(), now: new.cloned() });
            state.order.push_back(Slot::Object(key.clone()));
        }
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn push_synced(&self) {
        self.state.lock().order.push_back(Slot::Synced);
        self.wake.notify_one();
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// The next change; `Err` holds whether the queue is closed.
    fn pop(&self) -> Result<Change<T>, bool> {
        let mut state = self.state.lock();
        while let Some(slot) = state.order.pop_front() {
            let Slot::Object(key) = slot else { return Ok(Change::Synced) };
            match state.pending.remove(&key) {
                Some(Pending { told: old, now: Some(new) }) => return Ok(Change::Applied { old, new }),
                Some(Pending { told: Some(old), now: None }) => return Ok(Change::Deleted(old)),
                // Came and went before the subscriber looked.
                Some(Pending { told: None, now: None }) | None => {}
            }
        }
        Err(state.closed)
    }
}

/// A stream of [`Change`]s, beginning with everything that is in the cache. Dropping it ends it.
pub struct Subscription<T>(pub(super) Arc<Queue<T>>);

impl<T> Subscription<T> {
    /// The next change; `None` after the informer stopped. Cancel safe.
    pub async fn next(&mut self) -> Option<Change<T>> {
        loop {
            match self.0.pop() {
                Ok(change) => return Some(change),
                Err(true) => return None,
                Err(false) => self.0.wake.notified().await,
            }
        }
    }

    /// The next change if one waits.
    pub fn try_next(&mut self) -> Option<Change<T>> {
        self.0.pop().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(queue: &Queue<u32>) -> Vec<String> {
        let text = |change| match change {
            Change::Applied { old, new } => format!("{old:?}->{new}"),
            Change::Deleted(old) => format!("-{old}"),
            Change::Synced => "synced".to_owned(),
        };
        std::iter::from_fn(|| queue.pop().ok()).map(text).collect()
    }

    #[test]
    fn waiting_changes_merge_per_object() {
        let (a, b) = (ObjectKey::new("", "a"), ObjectKey::new("", "b"));
        let numbers: Vec<Arc<u32>> = (0..4).map(Arc::new).collect();
        let queue = Queue::new();
        queue.push(&a, None, Some(&numbers[0]));
        queue.push_synced();
        queue.push(&a, Some(&numbers[0]), Some(&numbers[1]));
        queue.push(&b, None, Some(&numbers[2]));
        queue.push(&b, Some(&numbers[2]), None);
        assert_eq!(told(&queue), ["None->1", "synced"]);
        queue.push(&a, Some(&numbers[1]), None);
        queue.push(&a, None, Some(&numbers[3]));
        assert_eq!(told(&queue), ["Some(1)->3"]);
        queue.push(&a, Some(&numbers[3]), None);
        assert_eq!(told(&queue), ["-3"]);
        queue.close();
        assert!(matches!(queue.pop(), Err(true)));
    }
}
