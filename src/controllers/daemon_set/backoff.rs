//! How long a failed pod is left alone before it is deleted and made anew: 1 s, doubling to 15 minutes, for each node of each
//! DaemonSet, as upstream's `failedPodsBackoff`. A kubelet that refuses a pod would otherwise be asked again and again.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::ObjectKey;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    since: Instant,
}

impl Entry {
    fn left(&self, now: Instant) -> Duration {
        self.delay.saturating_sub(now.duration_since(self.since))
    }
}

/// The delays of one DaemonSet as it stands: of this uid, and of what the controller last observed of its specification.
#[derive(Default)]
struct Nodes {
    uid: String,
    generation: i64,
    entries: HashMap<String, Entry>,
}

/// The delays of all DaemonSets.
#[derive(Default)]
pub(super) struct Backoff(Mutex<HashMap<ObjectKey, Nodes>>);

impl Backoff {
    /// For each node whose delay has not passed, how much of it is left. A DaemonSet of another uid or generation begins anew.
    pub(super) fn waiting(&self, key: &ObjectKey, uid: &str, generation: i64, now: Instant) -> HashMap<String, Duration> {
        let mut all = self.0.lock();
        let Some(nodes) = all.get_mut(key) else { return HashMap::new() };
        if nodes.uid != uid || nodes.generation != generation {
            all.remove(key);
            return HashMap::new();
        }
        nodes.entries.retain(|_, entry| now.duration_since(entry.since) < LONGEST * 2);
        let waiting = nodes.entries.iter().map(|(node, entry)| (node.clone(), entry.left(now)));
        waiting.filter(|(_, left)| !left.is_zero()).collect()
    }

    /// A failed pod on this node is deleted now.
    pub(super) fn failed(&self, key: &ObjectKey, uid: &str, generation: i64, node: &str, now: Instant) {
        let mut all = self.0.lock();
        let nodes = all.entry(key.clone()).or_default();
        if nodes.uid != uid || nodes.generation != generation {
            *nodes = Nodes { uid: uid.to_owned(), generation, entries: HashMap::new() };
        }
        let entry = nodes.entries.entry(node.to_owned());
        let again = |entry: &mut Entry| *entry = Entry { delay: (entry.delay * 2).min(LONGEST), since: now };
        entry.and_modify(again).or_insert(Entry { delay: FIRST, since: now });
    }

    /// The DaemonSet is gone.
    pub(super) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::clock;

    #[tokio::test(start_paused = true)]
    async fn delays_double_and_begin_anew() {
        let (backoff, key) = (Backoff::default(), ObjectKey::new("a", "agent"));
        let left = |generation| backoff.waiting(&key, "u", generation, clock::instant()).get("n1").map(Duration::as_secs);
        assert_eq!(left(1), None);
        for expected in [1, 2, 4, 8] {
            backoff.failed(&key, "u", 1, "n1", clock::instant());
            assert_eq!(left(1), Some(expected));
            tokio::time::advance(Duration::from_secs(expected)).await;
            assert_eq!(left(1), None);
        }
        (0..20).for_each(|_| backoff.failed(&key, "u", 1, "n1", clock::instant()));
        assert_eq!(left(1), Some(900));
        assert_eq!(left(2), None);
        assert_eq!(left(1), None, "the delays of a former generation are forgotten");
        backoff.failed(&key, "u", 1, "n1", clock::instant());
        assert_eq!(left(1), Some(1));
    }
}
