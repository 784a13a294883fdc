//! Answers of upstreams, by question. Two generations bound it: when the younger is full it becomes the older, and what nobody
//! asked for in the meantime goes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::stored::Stored;

/// Most answers of a generation; CoreDNS keeps about 10,000 of each sort.
const ANSWERS: usize = 8_192;
/// Most bytes of a generation.
const BYTES: usize = 8 << 20;
/// How long an answer is kept beyond its end, for when no upstream answers; CoreDNS's `serve_stale`.
const STALE: Duration = Duration::from_secs(3_600);
/// How long such an answer is repeated before the upstreams are tried again.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Entry {
    stored: Arc<Stored>,
    /// Until when it is told without asking.
    until: Instant,
}

#[derive(Default)]
pub(super) struct Cache {
    young: HashMap<Box<[u8]>, Entry>,
    old: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
}

impl Cache {
    /// An answer that may be told without asking.
    pub(super) fn fresh(&mut self, key: &[u8], now: Instant) -> Option<Arc<Stored>> {
        let entry = self.get(key)?;
        (now < entry.until).then(|| Arc::clone(&entry.stored))
    }

    /// An answer that is too old, but better than none; it is told for a while from now on.
    pub(super) fn stale(&mut self, key: &[u8], now: Instant) -> Option<Arc<Stored>> {
        let mut entry = self.get(key)?.clone();
        if !entry.stored.is_answer() || now > entry.stored.expires() + STALE {
            return None;
        }
        entry.until = now + RETRY;
        let stored = Arc::clone(&entry.stored);
        self.young.insert(key.into(), entry);
        Some(stored)
    }

    /// Keeps an answer for its lifetime. A failure never replaces an answer.
    pub(super) fn insert(&mut self, key: &[u8], stored: &Arc<Stored>) {
        let is_kept = stored.is_answer() || self.get(key).is_none_or(|known| !known.stored.is_answer());
        if is_kept && !stored.lifetime.is_zero() {
            self.put(key, Entry { stored: Arc::clone(stored), until: stored.expires() });
        }
    }

    /// How many answers there are.
    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn get(&mut self, key: &[u8]) -> Option<&Entry> {
        if let Some(entry) = self.old.remove(key) {
            self.put(key, entry);
        }
        self.young.get(key)
    }

    fn put(&mut self, key: &[u8], entry: Entry) {
        let size = |entry: &Entry| entry.stored.size() + key.len() + size_of::<Entry>();
        self.bytes += size(&entry);
        if let Some(replaced) = self.young.insert(key.into(), entry) {
            self.bytes = self.bytes.saturating_sub(size(&replaced));
        }
        if self.young.len() > ANSWERS || self.bytes > BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
            // What was just put must be found.
            if let Some(entry) = self.old.remove(key) {
                self.bytes = size(&entry);
                self.young.insert(key.into(), entry);
            }
        }
    }
}
