//! The pods that wait for a node: active (to be tried now), backing off, and unschedulable (until something changes that may help).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pod_info::PodInfo;
use crate::rt::backoff::exponential;

const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_CAP: Duration = Duration::from_secs(10);
/// Time after which an unschedulable pod is tried again even if no event seemed to concern it.
const UNSCHEDULABLE: Duration = Duration::from_secs(300);

/// The filters that kept a pod from nodes, as bits in the order of `FILTERS`.
pub type FilterSet = u32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    /// Until this time, then active.
    Backoff(Instant),
    /// Until an event concerns one of these filters, or until this time.
    Unschedulable(FilterSet, Instant),
}

struct Waiting {
    pod: Arc<PodInfo>,
    attempts: u32,
    last_try: Instant,
    place: Place,
    sequence: u64,
}

/// The queue. Pods are known by their uid.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    /// Highest priority first, then first come; may hold entries that are outdated.
    active: BinaryHeap<(i32, Reverse<u64>, String)>,
    /// When backing off or unschedulable pods are due.
    due: BTreeSet<(Instant, String)>,
    sequence: u64,
}

impl Queue {
    /// Adds a pod, or takes note of its change: a changed pod is tried again.
    pub fn add(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid().to_owned();
        let attempts = self.pods.get(&uid).map_or(0, |waiting| waiting.attempts);
        if let Some(waiting) = self.pods.get_mut(&uid)
            && waiting.place == Place::Active
        {
            waiting.pod = pod;
            return;
        }
        self.put(pod, attempts, now, Place::Active);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) {
        if let Some(Waiting { place: Place::Backoff(at) | Place::Unschedulable(_, at), .. }) = self.pods.remove(uid) {
            self.due.remove(&(at, uid.to_owned()));
        }
    }

    /// The pod of a uid, if it waits.
    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|waiting| &waiting.pod)
    }

    /// Takes the next pod to try, with the number of tries before.
    pub fn pop(&mut self, now: Instant) -> Option<(Arc<PodInfo>, u32)> {
        self.promote(now);
        while let Some((_, Reverse(sequence), uid)) = self.active.pop() {
            let is_present =
                self.pods.get(&uid).is_some_and(|waiting| waiting.place == Place::Active && waiting.sequence == sequence);
            if is_present && let Some(waiting) = self.pods.remove(&uid) {
                return Some((waiting.pod, waiting.attempts));
            }
        }
        None
    }

    /// Puts back a pod that no node takes, with the filters that said so.
    pub fn unschedulable(&mut self, pod: Arc<PodInfo>, attempts: u32, filters: FilterSet, now: Instant) {
        self.put(pod, attempts, now, Place::Unschedulable(filters, now + UNSCHEDULABLE));
    }

    /// Puts back a pod whose binding failed.
    pub fn back_off(&mut self, pod: Arc<PodInfo>, attempts: u32, now: Instant) {
        self.put(pod, attempts, now, Place::Backoff(now + delay(attempts)));
    }

    /// Something changed that may let pods through one of these filters.
    pub fn wake(&mut self, filters: FilterSet, now: Instant) {
        let concerned = self.pods.iter().filter_map(|(uid, waiting)| match waiting.place {
            Place::Unschedulable(failed, _) if failed & filters != 0 => Some(uid.clone()),
            _ => None,
        });
        for uid in concerned.collect::<Vec<_>>() {
            self.wake_one(&uid, now);
        }
    }

    /// Something concerns this pod alone: it is tried again, but not before its backoff.
    pub fn wake_one(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get(uid).filter(|waiting| matches!(waiting.place, Place::Unschedulable(..))) else {
            return;
        };
        let (pod, attempts, last_try) = (Arc::clone(&waiting.pod), waiting.attempts, waiting.last_try);
        let at = last_try + delay(attempts);
        self.put(pod, attempts, last_try, if at <= now { Place::Active } else { Place::Backoff(at) });
    }

    /// Takes note of a change that is no reason to try the pod again.
    pub fn refresh(&mut self, pod: Arc<PodInfo>) {
        if let Some(waiting) = self.pods.get_mut(pod.uid()) {
            waiting.pod = pod;
        }
    }

    /// When the next waiting pod is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Whether a pod is to be tried now.
    pub fn has_active(&self) -> bool {
        !self.active.is_empty()
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, uid)) = self.due.first().cloned() {
            if at > now {
                return;
            }
            self.due.remove(&(at, uid.clone()));
            if let Some(waiting) = self.pods.remove(&uid) {
                self.put(waiting.pod, waiting.attempts, waiting.last_try, Place::Active);
            }
        }
    }

    fn put(&mut self, pod: Arc<PodInfo>, attempts: u32, last_try: Instant, place: Place) {
        let uid = pod.uid().to_owned();
        self.remove(&uid);
        self.sequence += 1;
        match place {
            Place::Active => self.active.push((pod.priority, Reverse(self.sequence), uid.clone())),
            Place::Backoff(at) | Place::Unschedulable(_, at) => drop(self.due.insert((at, uid.clone()))),
        }
        self.pods.insert(uid, Waiting { pod, attempts, last_try, place, sequence: self.sequence });
    }
}

fn delay(attempts: u32) -> Duration {
    exponential(BACKOFF_BASE, BACKOFF_CAP, attempts.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::snapshot::tests::pod;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn priority_then_order_then_events() {
        let now = crate::rt::clock::instant();
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0)] {
            queue.add(pod(name, "1", &json!({"priority": priority})), now);
        }
        let mut names = Vec::new();
        while let Some((pod, _)) = queue.pop(now) {
            names.push(pod.name().to_owned());
        }
        assert_eq!(names, ["b", "a", "c"]);
        queue.unschedulable(pod("a", "1", &json!({})), 1, 0b10, now);
        queue.wake(0b01, now);
        assert!(queue.pop(now).is_none());
        queue.wake(0b10, now);
        assert!(queue.pop(now).is_none(), "backs off for a second after its try");
        assert_eq!(queue.next_due(), Some(now + BACKOFF_BASE));
        assert!(queue.pop(now + BACKOFF_BASE).is_some());
        queue.back_off(pod("a", "1", &json!({})), 5, now);
        queue.remove("a");
        assert_eq!((queue.pods.len(), queue.next_due()), (0, None));
    }
}
