//! Recent history: the window of changes from which watches are fed and old snapshots are rebuilt.
//!
//! Events are kept once a bucket for the whole window. A [`Watch`] holds only a position in it: it costs no memory when it falls
//! behind, delays nobody, and ends with [`Expired`] when the window has passed it. Writers wake the watchers of a bucket once a
//! batch; a watcher takes all that is waiting at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::state::{Record, Snapshot, State};
use super::{Change, Entry, Event, Expired, Revision, bucket};
use crate::rt::limits;

/// How far back the store can go.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Number of changes.
    pub revisions: usize,
    /// Age of the oldest change, by the clock of the leader that wrote it.
    pub age: Duration,
    /// Bytes of the values that only history holds.
    pub bytes: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { revisions: limits::HISTORY_REVISIONS, age: limits::HISTORY_AGE, bytes: limits::HISTORY_BYTES }
    }
}

/// Number of changes between the snapshots that history keeps to rebuild others from.
const MARK_EVERY: u64 = 10_000;
/// Rebuilt snapshots that are kept for the next page of a LIST.
const REBUILT: usize = 4;

/// Which secondary index a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Indexed {
    Label,
    Field,
}

/// What a watch of few of many objects is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Interest {
    /// A value of a label or an indexed field.
    Value { indexed: Indexed, name: Arc<str>, value: Arc<str> },
    /// The last part of a key.
    Name(Arc<str>),
}

impl Interest {
    fn values_of(entry: &Entry) -> impl Iterator<Item = Self> {
        let labels = entry.index.labels.iter().map(|pair| (Indexed::Label, pair));
        let fields = entry.index.fields.iter().map(|pair| (Indexed::Field, pair));
        labels.chain(fields).map(|(indexed, (name, value))| Self::Value {
            indexed,
            name: Arc::clone(name),
            value: Arc::clone(value),
        })
    }

    fn is_of(&self, entry: &Entry) -> bool {
        match self {
            Self::Value { indexed, name, value } => {
                let pairs = match indexed {
                    Indexed::Label => &entry.index.labels,
                    Indexed::Field => &entry.index.fields,
                };
                pairs.iter().any(|(known, of)| known == name && of == value)
            }
            Self::Name(name) => last_part(&entry.key) == &**name,
        }
    }
}

fn last_part(key: &str) -> &str {
    key.rsplit_once('/').map_or(key, |(_, last)| last)
}

impl Record {
    /// The values after and before the change.
    fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let after = match &self.event.change {
            Change::Put { entry, .. } => entry,
            Change::Delete { last } => last,
        };
        std::iter::once(after).chain(&self.previous)
    }
}

/// The newest snapshot and the window of history before it.
pub(super) struct Timeline {
    newest: ArcSwap<Snapshot>,
    history: RwLock<History>,
    window: Window,
}

struct History {
    /// The state that `records` lead up to.
    newest: Snapshot,
    /// The revision at which the timeline began.
    start: Revision,
    /// Every change after this revision is held.
    floor: Revision,
    records: VecDeque<Stamped>,
    rings: HashMap<Arc<str>, Ring>,
    /// Snapshots to rebuild others from, oldest first.
    marks: VecDeque<Snapshot>,
    rebuilt: VecDeque<Snapshot>,
    /// Bytes of values that only history holds.
    bytes: usize,
    /// What has come since all watches were last woken.
    since_nudge: Nudge,
    closed: bool,
}

/// A watch that is about one value may sleep for long. Before the window passes it, it is woken to move on.
#[derive(Default)]
struct Nudge {
    revisions: usize,
    bytes: usize,
    time_ms: i64,
}

struct Stamped {
    time_ms: i64,
    record: Arc<Record>,
}

/// The changes of one bucket, oldest first.
struct Ring {
    /// Every change of the bucket after this revision is held.
    floor: Revision,
    records: VecDeque<Arc<Record>>,
    /// For watches of everything.
    wake: watch::Sender<Revision>,
    /// For watches that are about one name, or one value of a label or field: thousands of agents watch the pods of one node each, and
    /// the ConfigMaps that these use.
    topics: HashMap<Interest, watch::Sender<Revision>>,
}

impl Ring {
    fn new(floor: Revision) -> Self {
        Self { floor, records: VecDeque::new(), wake: watch::Sender::new(floor), topics: HashMap::new() }
    }

    /// Who waits for a change like this one, besides the watches of everything.
    fn interested(&mut self, record: &Record) -> Vec<watch::Sender<Revision>> {
        if self.topics.is_empty() {
            return Vec::new();
        }
        let mut interested = Vec::new();
        let name = Interest::Name(last_part(record.event.key()).into());
        for interest in record.entries().flat_map(|entry| Interest::values_of(entry)).chain(std::iter::once(name)) {
            match self.topics.get(&interest) {
                Some(topic) if topic.receiver_count() > 0 => interested.push(topic.clone()),
                Some(_) => drop(self.topics.remove(&interest)),
                None => {}
            }
        }
        interested
    }

    fn wakes(&self) -> impl Iterator<Item = &watch::Sender<Revision>> {
        std::iter::once(&self.wake).chain(self.topics.values())
    }
}

impl Timeline {
    pub(super) fn new(snapshot: Snapshot, window: Window) -> Arc<Self> {
        let history = History {
            start: snapshot.revision(),
            floor: snapshot.revision(),
            records: VecDeque::new(),
            rings: HashMap::new(),
            marks: VecDeque::new(),
            rebuilt: VecDeque::new(),
            bytes: 0,
            since_nudge: Nudge::default(),
            closed: false,
            newest: snapshot.clone(),
        };
        Arc::new(Self { newest: ArcSwap::from_pointee(snapshot), history: RwLock::new(history), window })
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot::clone(&self.newest.load())
    }

    /// Makes `snapshot` the newest; `records` are the changes that lead to it. Whoever sees an event sees it in the snapshot too.
    pub(super) fn publish(&self, snapshot: Snapshot, records: Vec<Record>, time_ms: i64) {
        let mut woken = Vec::new();
        {
            let mut history = self.history.write();
            self.newest.store(Arc::new(snapshot.clone()));
            history.mark(&snapshot);
            for record in records {
                history.push(record, time_ms, &mut woken);
            }
            history.nudge(&self.window, time_ms, &mut woken);
            history.trim(&self.window, time_ms);
            history.newest = snapshot.clone();
        }
        for wake in woken {
            wake.send_replace(snapshot.revision());
        }
    }

    /// Replaces everything by a state that came from elsewhere: all watches end with [`Expired`].
    pub(super) fn reset(&self, snapshot: Snapshot) {
        let mut history = self.history.write();
        self.newest.store(Arc::new(snapshot.clone()));
        history.start = snapshot.revision();
        history.floor = snapshot.revision();
        history.records.clear();
        history.marks.clear();
        history.rebuilt.clear();
        history.bytes = 0;
        for ring in history.rings.values_mut() {
            ring.records.clear();
            ring.floor = snapshot.revision();
            for wake in ring.wakes() {
                wake.send_replace(snapshot.revision());
            }
        }
        history.newest = snapshot;
    }

    /// Ends all watches.
    pub(super) fn close(&self) {
        let mut history = self.history.write();
        history.closed = true;
        for wake in history.rings.values().flat_map(Ring::wakes) {
            wake.send_replace(history.newest.revision());
        }
    }

    /// The state as it was at `revision`, or the newest.
    pub(super) fn snapshot_at(&self, revision: Revision) -> Result<Snapshot, Expired> {
        let (base, records) = {
            let history = self.history.read();
            if revision >= history.newest.revision() {
                return Ok(history.newest.clone());
            }
            if revision < history.floor {
                return Err(Expired { revision, oldest: history.floor });
            }
            let base = history.base(revision);
            if base.revision() == revision {
                return Ok(base);
            }
            (base.clone(), history.between(revision, base.revision()))
        };
        let mut state = State::clone(base.state());
        records.iter().rev().for_each(|record| state.undo(record));
        state.revision = revision;
        let snapshot = Snapshot::new(state);
        let mut history = self.history.write();
        history.rebuilt.push_back(snapshot.clone());
        if history.rebuilt.len() > REBUILT {
            history.rebuilt.pop_front();
        }
        Ok(snapshot)
    }

    pub(super) fn watch(self: &Arc<Self>, prefix: &str, from: Revision) -> Result<Watch, Expired> {
        let name = bucket(prefix);
        let mut history = self.history.write();
        let floor = history.floor;
        let base = history.ring_floor(name);
        if from < base {
            return Err(Expired { revision: from, oldest: floor.max(base) });
        }
        let ring = history.rings.entry(name.into()).or_insert_with(|| Ring::new(base));
        Ok(Watch {
            timeline: Arc::clone(self),
            bucket: name.into(),
            prefix: prefix.into(),
            interest: None,
            cursor: from,
            wake: ring.wake.subscribe(),
            ready: VecDeque::new(),
        })
    }

    /// The oldest revision that can be gone back to, and the number of changes held.
    pub(super) fn held(&self) -> (Revision, usize) {
        let history = self.history.read();
        (history.floor, history.records.len())
    }
}

impl History {
    /// Keeps a snapshot every so many changes, so that rebuilding an old one takes few steps.
    fn mark(&mut self, next: &Snapshot) {
        if self.newest.revision() / MARK_EVERY != next.revision() / MARK_EVERY && self.newest.revision() > self.floor {
            self.marks.push_back(self.newest.clone());
        }
    }

    fn push(&mut self, record: Record, time_ms: i64, woken: &mut Vec<watch::Sender<Revision>>) {
        let record = Arc::new(record);
        let name = bucket(record.event.key());
        self.bytes += weight(&record);
        self.since_nudge.bytes += weight(&record);
        self.since_nudge.revisions += 1;
        self.records.push_back(Stamped { time_ms, record: Arc::clone(&record) });
        if !self.rings.contains_key(name) {
            self.rings.insert(name.into(), Ring::new(self.start));
        }
        if let Some(ring) = self.rings.get_mut(name) {
            woken.extend(ring.interested(&record));
            if !woken.iter().any(|known| known.same_channel(&ring.wake)) {
                woken.push(ring.wake.clone());
            }
            ring.records.push_back(Arc::clone(&record));
        }
    }

    /// Wakes everybody once in a quarter of the window.
    fn nudge(&mut self, window: &Window, time_ms: i64, woken: &mut Vec<watch::Sender<Revision>>) {
        let Nudge { revisions, bytes, time_ms: last_ms } = self.since_nudge;
        let age_ms = i64::try_from(window.age.as_millis()).unwrap_or(i64::MAX);
        if revisions < window.revisions / 4 && bytes < window.bytes / 4 && time_ms.saturating_sub(last_ms) < age_ms / 4 {
            return;
        }
        self.since_nudge = Nudge { revisions: 0, bytes: 0, time_ms };
        self.rings.values_mut().for_each(|ring| ring.topics.retain(|_, topic| topic.receiver_count() > 0));
        woken.extend(self.rings.values().flat_map(|ring| ring.topics.values()).cloned());
    }

    /// A bucket without a ring has had no change since the timeline began.
    fn ring_floor(&self, name: &str) -> Revision {
        self.rings.get(name).map_or(self.start, |ring| ring.floor)
    }

    fn trim(&mut self, window: &Window, now_ms: i64) {
        let oldest_ms = now_ms.saturating_sub(i64::try_from(window.age.as_millis()).unwrap_or(i64::MAX));
        while let Some(front) = self.records.front() {
            let held = self.records.len() <= window.revisions && front.time_ms >= oldest_ms && self.bytes <= window.bytes;
            if held {
                break;
            }
            let Some(Stamped { record, .. }) = self.records.pop_front() else { break };
            self.bytes -= weight(&record);
            self.floor = record.event.revision;
            if let Some(ring) = self.rings.get_mut(bucket(record.event.key())) {
                ring.records.pop_front();
                ring.floor = record.event.revision;
            }
        }
        let floor = self.floor;
        self.marks.retain(|mark| mark.revision() >= floor);
        self.rebuilt.retain(|snapshot| snapshot.revision() >= floor);
    }

    /// The oldest snapshot at hand that is not before `revision`.
    fn base(&self, revision: Revision) -> Snapshot {
        let candidates = self.marks.iter().chain(&self.rebuilt).filter(|snapshot| snapshot.revision() >= revision);
        candidates.min_by_key(|snapshot| snapshot.revision()).unwrap_or(&self.newest).clone()
    }

    /// Changes after `from`, up to and including `to`.
    fn between(&self, from: Revision, to: Revision) -> Vec<Arc<Record>> {
        let position = |revision| self.records.partition_point(|stamped| stamped.record.event.revision <= revision);
        self.records.range(position(from)..position(to)).map(|stamped| Arc::clone(&stamped.record)).collect()
    }
}

/// What a record costs beyond the state: the value that it replaced, and itself.
fn weight(record: &Record) -> usize {
    const OVERHEAD: usize = 160;
    OVERHEAD + record.previous.as_ref().map_or(0, |entry| entry.bytes.len())
}

/// Events under a prefix, each exactly once and in order.
pub struct Watch {
    timeline: Arc<Timeline>,
    bucket: Arc<str>,
    prefix: Box<str>,
    interest: Option<Interest>,
    /// Every event up to here was taken from the ring (or is not ours).
    cursor: Revision,
    wake: watch::Receiver<Revision>,
    ready: VecDeque<Event>,
}

/// Events that are taken from the ring at one time.
const TAKE: usize = 256;

impl Watch {
    /// Only events of objects that have, or had before the change, this value of a label or indexed field. The others do not even
    /// wake this watch.
    #[must_use]
    pub fn narrowed_to(self, indexed: Indexed, name: &str, value: &str) -> Self {
        self.narrowed(Interest::Value { indexed, name: name.into(), value: value.into() })
    }

    /// Only events of objects whose key ends with this name. The others do not even wake this watch.
    #[must_use]
    pub fn narrowed_to_name(self, name: &str) -> Self {
        self.narrowed(Interest::Name(name.into()))
    }

    fn narrowed(mut self, interest: Interest) -> Self {
        if let Some(ring) = self.timeline.history.write().rings.get_mut(&self.bucket) {
            self.wake = ring.topics.entry(interest.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe();
        }
        self.interest = Some(interest);
        self
    }

    fn is_ours(&self, record: &Record) -> bool {
        let of_interest = |interest: &Interest| record.entries().any(|entry| interest.is_of(entry));
        record.event.key().starts_with(&*self.prefix) && self.interest.as_ref().is_none_or(of_interest)
    }

    /// The next event; `None` when the store was closed. Cancel-safe.
    ///
    /// # Errors
    /// [`Expired`] (as an item, and again at each later call) when the window has passed this watch: list again.
    pub async fn next(&mut self) -> Option<Result<Event, Expired>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            match self.fill().await? {
                Ok(()) => {}
                Err(expired) => return Some(Err(expired)),
            }
        }
    }

    /// All events that are waiting, at least one and at most some hundreds; otherwise as [`next`](Self::next). Cancel-safe.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn next_batch(&mut self) -> Option<Result<Vec<Event>, Expired>> {
        if self.ready.is_empty() {
            match self.fill().await? {
                Ok(()) => {}
                Err(expired) => return Some(Err(expired)),
            }
        }
        Some(Ok(std::mem::take(&mut self.ready).into()))
    }

    /// The revision up to which every event has been handed out: what a bookmark may say.
    pub fn progress(&self) -> Revision {
        if let Some(event) = self.ready.front() {
            return event.revision - 1;
        }
        let history = self.timeline.history.read();
        let ours = history
            .rings
            .get(&self.bucket)
            .is_some_and(|ring| ring.floor > self.cursor || ring.after(self.cursor).any(|record| self.is_ours(record)));
        if ours { self.cursor } else { self.cursor.max(history.newest.revision()) }
    }

    /// Waits for events and moves at least one to `ready`.
    async fn fill(&mut self) -> Option<Result<(), Expired>> {
        loop {
            self.wake.borrow_and_update();
            match self.take() {
                Taken::Events => return Some(Ok(())),
                Taken::Expired(expired) => return Some(Err(expired)),
                Taken::Closed => return None,
                Taken::Nothing => self.wake.changed().await.ok()?,
            }
        }
    }

    fn take(&mut self) -> Taken {
        let history = self.timeline.history.read();
        let Some(ring) = history.rings.get(&self.bucket) else { return Taken::Nothing };
        if ring.floor > self.cursor {
            return Taken::Expired(Expired { revision: self.cursor, oldest: history.floor.max(ring.floor) });
        }
        let (mut seen, mut ready) = (self.cursor, std::mem::take(&mut self.ready));
        for record in ring.after(self.cursor) {
            seen = record.event.revision;
            if self.is_ours(record) {
                ready.push_back(record.event.clone());
                if ready.len() == TAKE {
                    break;
                }
            }
        }
        (self.cursor, self.ready) = (seen, ready);
        match (self.ready.is_empty(), history.closed) {
            (false, _) => Taken::Events,
            (true, true) => Taken::Closed,
            (true, false) => Taken::Nothing,
        }
    }
}

enum Taken {
    Events,
    Nothing,
    Expired(Expired),
    Closed,
}

impl Ring {
    fn after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Record>> {
        let start = self.records.partition_point(|record| record.event.revision <= revision);
        self.records.range(start..)
    }
}
