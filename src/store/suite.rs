//! The contract of [`Store`] as a suite of checks: every implementation passes all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::watch::Window;
use super::*;
use crate::rt::clock::FakeClock;
use crate::rt::random;

/// An opened store, and the clock that it was given.
pub struct Subject {
    pub store: Arc<dyn Store>,
    pub clock: Arc<FakeClock>,
}

type Check = fn(Subject) -> BoxFuture<'static, ()>;

/// The checks by name, each with the window of history that it wants.
const CHECKS: &[(&str, usize, Check)] = &[
    ("put, get and delete", 1_000, |subject| Box::pin(put_get_delete(subject))),
    ("guards", 1_000, |subject| Box::pin(guards(subject))),
    ("malformed transactions", 1_000, |subject| Box::pin(malformed(subject))),
    ("ranges and counts", 1_000, |subject| Box::pin(ranges(subject))),
    ("indexes", 1_000, |subject| Box::pin(indexes(subject))),
    ("history by count", 10, |subject| Box::pin(history_by_count(subject))),
    ("history by age", 1_000, |subject| Box::pin(history_by_age(subject))),
    ("watch resumes", 1_000, |subject| Box::pin(watch_resumes(subject))),
    ("narrowed watch", 40, |subject| Box::pin(narrowed_watch(subject))),
    ("slow watch expires alone", 20, |subject| Box::pin(slow_watch(subject))),
    ("watch under concurrency", 100_000, |subject| Box::pin(watch_under_concurrency(subject))),
    ("relaxed writes", 1_000, |subject| Box::pin(relaxed(subject))),
    ("random histories", 100_000, |subject| Box::pin(random_histories(subject))),
];

/// Runs every check, each on a store of its own.
pub async fn run(open: impl AsyncFn(Window) -> Subject) {
    for (name, revisions, check) in CHECKS {
        eprintln!("contract: {name}");
        check(open(Window { revisions: *revisions, ..Window::default() }).await).await;
    }
}

/// A draft whose body carries `value`.
pub fn draft(value: &str, labels: &[(&str, &str)]) -> Draft {
    let head = r#"{"metadata":{"resourceVersion":""#;
    let pair = |(key, value): &(&str, &str)| (Arc::from(*key), Arc::from(*value));
    Draft {
        body: Bytes::from(format!(r#"{head}"}},"value":"{value}"}}"#)),
        revision_at: head.len() as u32,
        index: Index { labels: labels.iter().map(pair).collect(), fields: labels.iter().map(pair).collect() },
    }
}

/// What the store makes of [`draft`] at a revision.
pub fn body(value: &str, revision: Revision) -> String {
    format!(r#"{{"metadata":{{"resourceVersion":"{revision}"}},"value":"{value}"}}"#)
}

pub fn put(key: &str, value: &str) -> Write {
    Write::Put { key: key.into(), draft: draft(value, &[]) }
}

pub fn delete(key: &str) -> Write {
    Write::Delete { key: key.into() }
}

pub fn transaction(guards: Vec<Guard>, writes: Vec<Write>) -> Transaction {
    Transaction { guards, writes, durability: Durability::Synced }
}

async fn write(store: &Arc<dyn Store>, writes: Vec<Write>) -> Vec<Written> {
    store.commit(transaction(vec![], writes)).await.unwrap()
}

fn text(entry: &Entry) -> &str {
    std::str::from_utf8(&entry.bytes).unwrap()
}

async fn next(watch: &mut Watch) -> Result<Event, Expired> {
    tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("an event in time").expect("an open store")
}

async fn put_get_delete(Subject { store, .. }: Subject) {
    let start = store.snapshot().revision();
    assert!(store.snapshot().is_empty());
    let written = write(&store, vec![put("a/b/n/x", "1"), put("a/b/n/y", "2"), put("a/b/n/x", "3")]).await;
    let Written::Put(last) = &written[2] else { panic!("{written:?}") };
    assert_eq!((last.revision, last.created, text(last)), (start + 3, start + 1, &*body("3", start + 3)));
    assert_eq!(store.snapshot().get("a/b/n/x").as_ref(), Some(last));
    assert_eq!(store.snapshot().len(), 2);

    let before = store.snapshot();
    let written = write(&store, vec![delete("a/b/n/none"), delete("a/b/n/x")]).await;
    let [Written::Deleted(None), Written::Deleted(Some(gone))] = &written[..] else { panic!("{written:?}") };
    assert_eq!((gone.revision, gone.created, text(gone)), (start + 4, start + 1, &*body("3", start + 4)));
    assert_eq!(store.snapshot().get("a/b/n/x"), None);
    assert_eq!(store.snapshot().revision(), start + 4);
    assert_eq!(before.get("a/b/n/x").as_ref(), Some(last), "a snapshot never changes");
    store.barrier().await.unwrap();
}

async fn guards(Subject { store, .. }: Subject) {
    let written = write(&store, vec![put("a/b/x", "1")]).await;
    let Written::Put(current) = &written[0] else { panic!("{written:?}") };
    let (here, gone): (Arc<str>, Arc<str>) = ("a/b/x".into(), "a/b/none".into());
    let revision = current.revision;
    let table = [
        (Guard::Absent { key: Arc::clone(&gone) }, None),
        (Guard::Present { key: Arc::clone(&here) }, None),
        (Guard::Unchanged { key: Arc::clone(&here), revision }, None),
        (Guard::Absent { key: Arc::clone(&here) }, Some(true)),
        (Guard::Present { key: Arc::clone(&gone) }, Some(false)),
        (Guard::Unchanged { key: Arc::clone(&here), revision: revision + 1 }, Some(true)),
        (Guard::Unchanged { key: Arc::clone(&gone), revision }, Some(false)),
    ];
    for (guard, fails) in table {
        let before = store.snapshot().revision();
        let first = Guard::Present { key: Arc::clone(&here) };
        let result = store.commit(transaction(vec![first, guard.clone()], vec![put("a/b/other", "1"), delete("a/b/none")])).await;
        match fails {
            None => assert_eq!(result.map(|written| written.len()), Ok(2), "{guard:?}"),
            Some(present) => {
                let current = present.then(|| Arc::clone(current));
                assert_eq!(result, Err(CommitError::Guard { index: 1, current }), "{guard:?}");
                assert_eq!(store.snapshot().revision(), before, "nothing is written when a guard fails");
            }
        }
    }
}

async fn malformed(Subject { store, .. }: Subject) {
    let wrong = |change: fn(&mut Draft)| {
        let mut wrong = draft("x", &[]);
        change(&mut wrong);
        Write::Put { key: "a/b/x".into(), draft: wrong }
    };
    let table = [
        put("a", "no bucket"),
        put("a/b", "no name"),
        wrong(|draft| draft.revision_at += 1),
        wrong(|draft| draft.revision_at = 0),
        wrong(|draft| draft.revision_at = u32::MAX),
        wrong(|draft| draft.body = [&draft.body[..], &vec![b' '; limits::OBJECT_BYTES]].concat().into()),
    ];
    for (index, write) in table.into_iter().enumerate() {
        let result = store.commit(transaction(vec![], vec![write])).await;
        assert!(matches!(result, Err(CommitError::Invalid(_))), "{index}: {result:?}");
    }
    assert!(store.snapshot().is_empty());
}

async fn ranges(Subject { store, .. }: Subject) {
    let keys = ["a/b/n1/x", "a/b/n1/y", "a/b/n10/x", "a/b/n2/x", "a/bc/n1/x", "a/c/x", "a/c/y"];
    write(&store, keys.iter().rev().map(|key| put(key, "")).collect()).await;
    write(&store, vec![put("a/b/n1/x", "again"), put("a/b/n3/x", ""), delete("a/b/n3/x")]).await;
    let snapshot = store.snapshot();
    let table: &[(&str, Option<&str>, &[&str])] = &[
        ("a/b/", None, &keys[..4]),
        ("a/b/n1/", None, &keys[..2]),
        ("a/b/n1/", Some("a/b/n1/x"), &keys[1..2]),
        ("a/b/", Some("a/b/n1/xx"), &keys[1..4]),
        ("a/b/n2/", Some("a/b/n1/y"), &keys[3..4]),
        ("a/b/n3/", None, &[]),
        ("a/c/", Some("a/c/x"), &keys[6..]),
        ("a/c/", Some("a/c/y"), &[]),
        ("z/z/", None, &[]),
    ];
    for (prefix, after, expected) in table {
        let found: Vec<&str> = snapshot.range(prefix, *after).map(|entry| &*entry.key).collect();
        assert_eq!(&found, expected, "{prefix} after {after:?}");
        if after.is_none() {
            assert_eq!(snapshot.count(prefix), expected.len(), "{prefix}");
        }
    }
    assert_eq!(snapshot.buckets().collect::<Vec<_>>(), [("a/b", 4), ("a/bc", 1), ("a/c", 2)]);
}

async fn indexes(Subject { store, .. }: Subject) {
    let labelled = |key: &str, labels| Write::Put { key: key.into(), draft: draft("", labels) };
    write(&store, vec![labelled("a/b/n1/x", &[("app", "web"), ("tier", "1")]), labelled("a/b/n2/y", &[("app", "web")])]).await;
    write(&store, vec![labelled("a/b/n1/z", &[("app", "webs")]), labelled("a/c/n1/x", &[("app", "web")])]).await;
    let check = |prefix: &str, key: &str, value: &str, expected: &[&str]| {
        let snapshot = store.snapshot();
        for found in [snapshot.by_label(prefix, key, value).collect::<Vec<_>>(), snapshot.by_field(prefix, key, value).collect()]
        {
            assert_eq!(found.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), expected, "{prefix} {key}={value}");
            assert!(found.iter().all(|entry| snapshot.get(&entry.key).as_ref() == Some(*entry)), "the index holds the newest");
        }
    };
    check("a/b/", "app", "web", &["a/b/n1/x", "a/b/n2/y"]);
    check("a/b/n2/", "app", "web", &["a/b/n2/y"]);
    check("a/b", "tier", "1", &["a/b/n1/x"]);
    check("a/c/", "app", "web", &["a/c/n1/x"]);
    check("a/c/", "app", "none", &[]);
    write(&store, vec![labelled("a/b/n1/x", &[("app", "db"), ("tier", "1")]), delete("a/b/n2/y")]).await;
    check("a/b/", "app", "web", &[]);
    check("a/b/", "app", "db", &["a/b/n1/x"]);
    check("a/b/", "tier", "1", &["a/b/n1/x"]);
}

async fn history_by_count(Subject { store, .. }: Subject) {
    let start = store.snapshot().revision();
    for number in 1..=30 {
        write(&store, vec![put("a/b/x", &number.to_string())]).await;
    }
    for (revision, held) in [(start + 30, true), (start + 21, true), (start + 20, true), (start + 19, false), (start, false)] {
        let found = store.snapshot_at(revision);
        assert_eq!(found.is_ok(), held, "revision {revision}: {found:?}");
        if let Ok(snapshot) = found {
            let entry = snapshot.get("a/b/x").unwrap();
            assert_eq!((snapshot.revision(), text(&entry)), (revision, &*body(&(revision - start).to_string(), revision)));
        }
    }
    assert_eq!(store.snapshot_at(start + 19).unwrap_err(), Expired { revision: start + 19, oldest: start + 20 });
    assert_eq!(store.snapshot_at(start + 99).unwrap().revision(), start + 30, "the future is now");
    assert!(store.watch("a/b/", start + 19).is_err());
    assert!(store.watch("a/b/", start + 20).is_ok());
    assert!(store.watch("a/c/", start).is_ok(), "nothing was lost in a bucket without changes");
}

async fn history_by_age(Subject { store, clock }: Subject) {
    write(&store, vec![put("a/b/x", "1")]).await;
    let old = store.snapshot().revision();
    clock.advance(limits::HISTORY_AGE - Duration::from_secs(1));
    write(&store, vec![put("a/b/x", "2")]).await;
    assert_eq!(store.snapshot_at(old - 1).unwrap().get("a/b/x"), None);
    clock.advance(Duration::from_secs(2));
    write(&store, vec![put("a/b/x", "3")]).await;
    assert!(store.snapshot_at(old - 1).is_err());
    assert_eq!(text(&store.snapshot_at(old).unwrap().get("a/b/x").unwrap()), body("1", old));
}

async fn watch_resumes(Subject { store, .. }: Subject) {
    let start = store.snapshot().revision();
    write(&store, vec![put("a/b/n1/x", "1"), put("a/b/n2/x", "1"), put("a/c/x", "1")]).await;
    write(&store, vec![put("a/b/n1/x", "2"), delete("a/b/n1/x")]).await;
    let mut watch = store.watch("a/b/n1/", start + 1).unwrap();
    assert_eq!(watch.progress(), start + 1);
    let event = next(&mut watch).await.unwrap();
    let Change::Put { entry, previous: Some(previous) } = &event.change else { panic!("{event:?}") };
    assert_eq!((event.revision, text(entry)), (start + 4, &*body("2", start + 4)));
    assert_eq!(text(previous), body("1", start + 1));
    assert_eq!(watch.progress(), start + 4);
    let event = next(&mut watch).await.unwrap();
    let Change::Delete { last } = &event.change else { panic!("{event:?}") };
    assert_eq!((event.revision, text(last)), (start + 5, &*body("2", start + 5)));
    write(&store, vec![put("a/b/n2/x", "other namespace"), put("a/z/x", "other bucket")]).await;
    assert_eq!(watch.progress(), start + 7);
    assert!(tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_err(), "no event of others");
    write(&store, vec![put("a/b/n1/x", "3")]).await;
    let event = next(&mut watch).await.unwrap();
    assert!(matches!(event.change, Change::Put { previous: None, .. }), "{event:?}");
}

async fn narrowed_watch(Subject { store, .. }: Subject) {
    let start = store.snapshot().revision();
    let on = |node: &str| Write::Put { key: "a/b/x".into(), draft: draft("", &[("node", node)]) };
    let open = || store.watch("a/b/", start).unwrap();
    let mut watches = [Indexed::Label, Indexed::Field].map(|indexed| open().narrowed_to(indexed, "node", "one"));
    let mut idle = open().narrowed_to(Indexed::Field, "node", "three");
    let (mut named, mut other) = (open().narrowed_to_name("x"), open().narrowed_to_name("b"));
    write(&store, vec![on("one"), on("one"), on("two"), on("two"), on("one"), delete("a/b/x"), on("two")]).await;
    for watch in &mut watches {
        for revision in [1, 2, 3, 5, 6] {
            assert_eq!(next(watch).await.unwrap().revision, start + revision, "it has, or had, the value");
        }
        assert_eq!(watch.progress(), start + 7);
        assert!(tokio::time::timeout(Duration::from_millis(20), watch.next()).await.is_err());
    }
    for revision in 1..=7 {
        assert_eq!(next(&mut named).await.unwrap().revision, start + revision, "it has the name");
    }
    assert!(tokio::time::timeout(Duration::from_millis(20), other.next()).await.is_err(), "nothing has the name");
    // The window passes a watch that is never concerned, and takes it along.
    for _ in 0..100 {
        write(&store, vec![on("two")]).await;
        assert!(tokio::time::timeout(Duration::from_millis(1), idle.next()).await.is_err());
    }
    write(&store, vec![on("three")]).await;
    assert_eq!(next(&mut idle).await.unwrap().revision, start + 108);
}

async fn slow_watch(Subject { store, .. }: Subject) {
    let start = store.snapshot().revision();
    let (mut slow, mut quick) = (store.watch("a/b/", start).unwrap(), store.watch("a/b/", start).unwrap());
    let mut quiet = store.watch("a/c/", start).unwrap();
    for number in 1..=50 {
        write(&store, vec![put("a/b/x", "")]).await;
        assert_eq!(next(&mut quick).await.unwrap().revision, start + number);
    }
    for _ in 0..2 {
        assert_eq!(next(&mut slow).await.unwrap_err(), Expired { revision: start, oldest: start + 30 });
    }
    write(&store, vec![put("a/c/x", "")]).await;
    assert_eq!(next(&mut quiet).await.unwrap().revision, start + 51);
}

async fn watch_under_concurrency(Subject { store, .. }: Subject) {
    const WRITERS: u64 = 8;
    const WRITES: u64 = 100;
    let start = store.snapshot().revision();
    let watchers = (0..4).map(|watcher| {
        let store = Arc::clone(&store);
        async move {
            let (mut watch, mut last) = (store.watch("a/b/", start).unwrap(), start);
            while last < start + WRITERS * WRITES {
                let batch = tokio::time::timeout(Duration::from_secs(30), watch.next_batch()).await.unwrap().unwrap().unwrap();
                for event in batch {
                    assert_eq!(event.revision, last + 1, "watcher {watcher}: exactly once and in order");
                    last = event.revision;
                }
                assert!(store.snapshot().revision() >= last, "whoever sees an event sees it in the snapshot");
            }
        }
    });
    let writers = (0..WRITERS).map(|writer| {
        let store = Arc::clone(&store);
        async move {
            let mut last = 0;
            for number in 0..WRITES {
                let written = write(&store, vec![put(&format!("a/b/{writer}"), &number.to_string())]).await;
                let Written::Put(entry) = &written[0] else { panic!("{written:?}") };
                assert!(entry.revision > last);
                assert!(store.snapshot().revision() >= entry.revision, "a write is visible when it is acknowledged");
                last = entry.revision;
            }
        }
    });
    let tasks: Vec<_> =
        watchers.map(|task| Box::pin(task) as BoxFuture<'_, ()>).chain(writers.map(|task| Box::pin(task) as _)).collect();
    futures_util::future::join_all(tasks).await;
}

async fn relaxed(Subject { store, .. }: Subject) {
    let start = store.snapshot().revision();
    let mut watch = store.watch("a/b/", start).unwrap();
    for number in 1..=20 {
        let durability = if number % 5 == 0 { Durability::Synced } else { Durability::Relaxed };
        let writes = vec![put("a/b/x", &number.to_string())];
        store.commit(Transaction { guards: vec![], writes, durability }).await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap().revision, start + number);
    }
    assert_eq!(text(&store.snapshot().get("a/b/x").unwrap()), body("20", start + 20));
}

/// What a snapshot must hold: by key, the value, its revision and that of its creation.
type Model = BTreeMap<String, (String, Revision, Revision)>;

async fn random_histories(Subject { store, .. }: Subject) {
    let seed = random::below(u64::MAX);
    eprintln!("seed {seed}");
    let mut dice = Dice(seed | 1);
    let (mut model, mut revision) = (Model::new(), store.snapshot().revision());
    let mut history = vec![(revision, model.clone())];
    let mut watch = store.watch("a/b/", revision).unwrap();
    for step in 0..300 {
        let writes: Vec<Write> = (0..=dice.below(4))
            .map(|number| {
                let key = format!("a/b/n{}/{}", dice.below(2), dice.below(6));
                if dice.below(3) == 0 { delete(&key) } else { put(&key, &format!("{step}.{number}")) }
            })
            .collect();
        let guard: Arc<str> = format!("a/b/n0/{}", dice.below(6)).into();
        let holds = !model.contains_key(&*guard);
        let guards = if dice.below(4) == 0 { vec![Guard::Absent { key: guard }] } else { vec![] };
        let refused = !guards.is_empty() && !holds;
        let result = store.commit(transaction(guards, writes.clone())).await;
        assert_eq!(result.is_err(), refused, "step {step}: {result:?}");
        if refused {
            continue;
        }
        for write in writes {
            revision += u64::from(apply(&mut model, write, revision + 1));
            if history.last().is_some_and(|(last, _)| *last < revision) {
                history.push((revision, model.clone()));
            }
        }
        assert_eq!(flatten(&store.snapshot()), model, "step {step}");
    }
    for _ in 0..100 {
        let (revision, model) = &history[dice.below(history.len() as u64) as usize];
        assert_eq!(&flatten(&store.snapshot_at(*revision).unwrap()), model, "revision {revision}");
    }
    let mut replayed = history[0].1.clone();
    for (revision, model) in &history[1..] {
        let event = next(&mut watch).await.unwrap();
        assert_eq!(event.revision, *revision);
        match event.change {
            Change::Put { entry, previous } => {
                let old = replayed.insert(entry.key.to_string(), flat(&entry));
                assert_eq!(old, previous.map(|entry| flat(&entry)));
            }
            Change::Delete { last } => assert!(replayed.remove(&*last.key).is_some()),
        }
        assert_eq!(&replayed, model, "the events up to {revision} make its state");
    }
}

/// Applies a write as the contract says. Returns whether it used a revision.
fn apply(model: &mut Model, write: Write, revision: Revision) -> bool {
    match write {
        Write::Put { key, draft } => {
            let created = model.get(&*key).map_or(revision, |old| old.2);
            let text = String::from_utf8(draft.body.to_vec()).unwrap();
            let spliced = text.replacen(r#":"""#, &format!(r#":"{revision}""#), 1);
            model.insert(key.to_string(), (spliced, revision, created));
            true
        }
        Write::Delete { key } => model.remove(&*key).is_some(),
    }
}

fn flat(entry: &Entry) -> (String, Revision, Revision) {
    (text(entry).to_owned(), entry.revision, entry.created)
}

fn flatten(snapshot: &Snapshot) -> Model {
    snapshot.range("a/b/", None).map(|entry| (entry.key.to_string(), flat(entry))).collect()
}

/// Numbers from a seed (xorshift).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
