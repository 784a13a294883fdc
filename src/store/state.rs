//! The state: an ordered, immutable snapshot per revision, with secondary indexes, and how a transaction changes it.
//!
//! Applying is deterministic: it takes nothing from a clock, so that every server that applies the same log holds the same state.
//! Objects live in one persistent map a bucket, so a copy is O(1) and a change copies one path of the tree.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use imbl::OrdMap;

use super::{Change, CommitError, Draft, Entry, Event, Guard, Index, Revision, Transaction, Write, Written, bucket};

/// The state at one revision: immutable, and O(1) to clone.
#[derive(Clone, Default)]
pub struct Snapshot(Arc<State>);

/// The state of one bucket, to tell whether it has changed since. Keeps that state alive.
#[derive(Clone)]
pub struct Mark(Option<Arc<Bucket>>);

impl PartialEq for Mark {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        }
    }
}

/// What a snapshot holds. A clone is O(number of buckets), and shares all objects.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) revision: Revision,
    /// No revision above this one may be given to a write that is not synced (see [`super::Durability::Relaxed`]).
    pub(super) ceiling: Revision,
    buckets: OrdMap<Arc<str>, Arc<Bucket>>,
    bytes: u64,
}

#[derive(Clone, Default)]
pub(super) struct Bucket {
    entries: OrdMap<Arc<str>, Arc<Entry>>,
    labels: OrdMap<Posting, Arc<Entry>>,
    fields: OrdMap<Posting, Arc<Entry>>,
    /// Number of objects by second-level prefix, `bucket/namespace/`.
    namespaces: OrdMap<Arc<str>, usize>,
}

/// Name, value, and the key of the object: the order of a secondary index.
type Posting = (Arc<str>, Arc<str>, Arc<str>);

impl Bucket {
    /// The same index, with the strings that other objects already hold: thousands of objects carry the same labels.
    fn shared(&self, index: &Index) -> Index {
        Index { labels: shared(&self.labels, &index.labels), fields: shared(&self.fields, &index.fields) }
    }
}

fn shared(postings: &OrdMap<Posting, Arc<Entry>>, pairs: &[(Arc<str>, Arc<str>)]) -> Vec<(Arc<str>, Arc<str>)> {
    let nothing: Arc<str> = Arc::from("");
    let shared = |(name, value): &(Arc<str>, Arc<str>)| {
        let first: Posting = (Arc::clone(name), Arc::clone(value), Arc::clone(&nothing));
        let (known, _) = postings.get_next(&first).unzip();
        let name = known.map(|known| &known.0).filter(|known| *known == name).unwrap_or(name);
        let value = known.map(|known| &known.1).filter(|known| *known == value).unwrap_or(value);
        (Arc::clone(name), Arc::clone(value))
    };
    pairs.iter().map(shared).collect()
}

/// A change that was applied, with what is needed to undo it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) event: Event,
    /// The value before, as it was stored.
    pub(super) previous: Option<Arc<Entry>>,
}

impl Snapshot {
    pub(super) fn new(state: State) -> Self {
        Self(Arc::new(state))
    }

    pub(super) fn state(&self) -> &State {
        &self.0
    }

    /// The revision of the last write in it.
    pub fn revision(&self) -> Revision {
        self.0.revision
    }

    /// The value at a key.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.0.get(key).cloned()
    }

    /// Values whose keys start with `prefix` (`bucket/` or `bucket/namespace/`), in key order; with `after`, only those whose keys
    /// come after it.
    pub fn range<'a>(&'a self, prefix: &'a str, after: Option<&str>) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.0
            .bucket(prefix)
            .map(|bucket| bucket.entries.range::<_, str>((start, Bound::Unbounded)))
            .into_iter()
            .flatten()
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry)
    }

    /// How many values a [`range`](Self::range) over `prefix` has; O(log n) for `bucket/` and `bucket/namespace/`.
    pub fn count(&self, prefix: &str) -> usize {
        let Some(found) = self.0.bucket(prefix) else { return 0 };
        let rest = prefix.strip_prefix(bucket(prefix)).unwrap_or("");
        if rest.is_empty() || rest == "/" {
            return found.entries.len();
        }
        if namespace_prefix(prefix) == Some(prefix) {
            return found.namespaces.get(prefix).copied().unwrap_or(0);
        }
        self.range(prefix, None).count()
    }

    /// Values under `prefix` with the label `key` = `value`, in key order; O(result).
    pub fn by_label<'a>(&'a self, prefix: &'a str, key: &str, value: &str) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        postings(self.0.bucket(prefix).map(|bucket| &bucket.labels), prefix, key, value)
    }

    /// Values under `prefix` whose indexed field `key` is `value`, in key order; O(result).
    pub fn by_field<'a>(&'a self, prefix: &'a str, key: &str, value: &str) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        postings(self.0.bucket(prefix).map(|bucket| &bucket.fields), prefix, key, value)
    }

    /// A mark of a bucket's present state: equal marks of two snapshots mean that nothing in it was written between them. O(1).
    pub fn mark(&self, bucket: &str) -> Mark {
        Mark(self.0.buckets.get(bucket).cloned())
    }

    /// Names of the buckets that hold something, with the number of their objects.
    pub fn buckets(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.buckets.iter().map(|(name, bucket)| (&**name, bucket.entries.len())).filter(|(_, count)| *count > 0)
    }

    /// All values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.buckets.values().flat_map(|bucket| bucket.entries.values())
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.0.buckets.values().map(|bucket| bucket.entries.len()).sum()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.0.bytes()
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("revision", &self.revision()).field("objects", &self.len()).finish()
    }
}

fn postings<'a>(
    index: Option<&'a OrdMap<Posting, Arc<Entry>>>,
    prefix: &'a str,
    key: &str,
    value: &str,
) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
    let start: Posting = (key.into(), value.into(), prefix.into());
    let (key, value) = (Arc::clone(&start.0), Arc::clone(&start.1));
    index
        .into_iter()
        .flat_map(move |index| index.range::<_, Posting>(start.clone()..))
        .take_while(move |(posting, _)| posting.0 == key && posting.1 == value && posting.2.starts_with(prefix))
        .map(|(_, entry)| entry)
}

/// `bucket/namespace/` of a key or prefix that has a third segment and a slash after it.
fn namespace_prefix(key: &str) -> Option<&str> {
    let bucket_len = bucket(key).len();
    let rest = key.get(bucket_len + 1..)?;
    let slash = rest.find('/')?;
    key.get(..bucket_len + 1 + slash + 1)
}

impl Bucket {
    /// Puts or removes one value and keeps the indexes in step. Returns the value before.
    fn set(&mut self, key: &Arc<str>, value: Option<&Arc<Entry>>) -> Option<Arc<Entry>> {
        let previous = match value {
            Some(entry) => self.entries.insert(Arc::clone(key), Arc::clone(entry)),
            None => self.entries.remove(&**key),
        };
        let nothing = Index::default();
        let old = previous.as_ref().map_or(&nothing, |entry| &entry.index);
        let new = value.map_or(&nothing, |entry| &entry.index);
        reindex(&mut self.labels, key, &old.labels, &new.labels, value);
        reindex(&mut self.fields, key, &old.fields, &new.fields, value);
        self.count(key, previous.is_some(), value.is_some());
        previous
    }

    fn count(&mut self, key: &str, before: bool, after: bool) {
        let Some(prefix) = namespace_prefix(key).filter(|_| before != after) else { return };
        let count = self.namespaces.get(prefix).copied().unwrap_or(0);
        match (after, count) {
            (true, _) => drop(self.namespaces.insert(prefix.into(), count + 1)),
            (false, 0 | 1) => drop(self.namespaces.remove(prefix)),
            (false, _) => drop(self.namespaces.insert(prefix.into(), count - 1)),
        }
    }
}

fn reindex(
    index: &mut OrdMap<Posting, Arc<Entry>>,
    key: &Arc<str>,
    old: &[(Arc<str>, Arc<str>)],
    new: &[(Arc<str>, Arc<str>)],
    value: Option<&Arc<Entry>>,
) {
    let posting = |pair: &(Arc<str>, Arc<str>)| (Arc::clone(&pair.0), Arc::clone(&pair.1), Arc::clone(key));
    for pair in old.iter().filter(|pair| !new.contains(pair)) {
        index.remove(&posting(pair));
    }
    for pair in new {
        if let Some(entry) = value {
            index.insert(posting(pair), Arc::clone(entry));
        }
    }
}

impl State {
    /// No objects, at a revision.
    pub(super) fn empty_at(revision: Revision, ceiling: Revision) -> Self {
        Self { revision, ceiling, ..Self::default() }
    }

    fn bucket(&self, key: &str) -> Option<&Bucket> {
        self.buckets.get(bucket(key)).map(|bucket| &**bucket)
    }

    fn get(&self, key: &str) -> Option<&Arc<Entry>> {
        self.bucket(key)?.entries.get(key)
    }

    /// Bytes of all values.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts or removes one value as it is: for loading, and for undoing.
    pub(super) fn set(&mut self, key: &Arc<str>, value: Option<&Arc<Entry>>) -> Option<Arc<Entry>> {
        let name = bucket(key);
        if !self.buckets.contains_key(name) {
            value?;
            self.buckets.insert(name.into(), Arc::default());
        }
        let previous = self.buckets.get_mut(name).and_then(|bucket| Arc::make_mut(bucket).set(key, value));
        self.bytes += value.map_or(0, |entry| entry.bytes.len() as u64);
        self.bytes -= previous.as_ref().map_or(0, |entry| entry.bytes.len() as u64);
        previous
    }

    /// Takes back one change.
    pub(super) fn undo(&mut self, record: &Record) {
        self.set(record.event.key(), record.previous.as_ref());
        self.revision = record.event.revision - 1;
    }

    /// Applies all of a transaction or nothing; changes are pushed to `records`.
    ///
    /// # Errors
    /// [`CommitError::Guard`].
    pub(super) fn apply(&mut self, transaction: &Transaction, records: &mut Vec<Record>) -> Result<Vec<Written>, CommitError> {
        for (index, guard) in transaction.guards.iter().enumerate() {
            let (key, holds): (_, fn(Option<&Entry>, &Guard) -> bool) = match guard {
                Guard::Absent { key } => (key, |current, _| current.is_none()),
                Guard::Present { key } => (key, |current, _| current.is_some()),
                Guard::Unchanged { key, .. } => (
                    key,
                    |current, guard| matches!((current, guard), (Some(entry), Guard::Unchanged { revision, .. }) if entry.revision == *revision),
                ),
            };
            let current = self.get(key);
            if !holds(current.map(|entry| &**entry), guard) {
                return Err(CommitError::Guard { index, current: current.cloned() });
            }
        }
        Ok(transaction.writes.iter().map(|write| self.write(write, records)).collect())
    }

    fn write(&mut self, write: &Write, records: &mut Vec<Record>) -> Written {
        match write {
            Write::Put { key, draft } => Written::Put(self.put(key, draft, records)),
            Write::Delete { key } => Written::Deleted(self.delete(key, records)),
        }
    }

    fn put(&mut self, key: &Arc<str>, draft: &Draft, records: &mut Vec<Record>) -> Arc<Entry> {
        self.revision += 1;
        let before = self.get(key);
        let entry = Arc::new(Entry {
            // One allocation of a key serves all its versions.
            key: before.map_or_else(|| Arc::clone(key), |before| Arc::clone(&before.key)),
            revision: self.revision,
            created: before.map_or(self.revision, |before| before.created),
            bytes: splice(&draft.body, draft.revision_at as usize, 0, self.revision),
            revision_at: draft.revision_at,
            index: self.bucket(key).map_or_else(|| draft.index.clone(), |bucket| bucket.shared(&draft.index)),
        });
        let previous = self.set(&Arc::clone(&entry.key), Some(&entry));
        let change = Change::Put { entry: Arc::clone(&entry), previous: previous.clone() };
        records.push(Record { event: Event { revision: self.revision, change }, previous });
        entry
    }

    fn delete(&mut self, key: &Arc<str>, records: &mut Vec<Record>) -> Option<Arc<Entry>> {
        let previous = self.set(key, None)?;
        self.revision += 1;
        let digits = previous.revision.to_string().len();
        let last = Arc::new(Entry {
            revision: self.revision,
            bytes: splice(&previous.bytes, previous.revision_at as usize, digits, self.revision),
            ..Entry::clone(&previous)
        });
        let change = Change::Delete { last: Arc::clone(&last) };
        records.push(Record { event: Event { revision: self.revision, change }, previous: Some(previous) });
        Some(last)
    }
}

/// `bytes` with the digits of `revision` in place of the `old` bytes at `at`.
fn splice(bytes: &[u8], at: usize, old: usize, revision: Revision) -> Bytes {
    let digits = revision.to_string();
    let (head, tail) = bytes.split_at(at.min(bytes.len()));
    let mut out = BytesMut::with_capacity(bytes.len() + digits.len() - old.min(tail.len()));
    out.extend_from_slice(head);
    out.extend_from_slice(digits.as_bytes());
    out.extend_from_slice(&tail[old.min(tail.len())..]);
    out.freeze()
}
