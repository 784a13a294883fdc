//! The contract on disk, and what only a disk brings: restarts, damage, a second server, a full disk.

use std::sync::Arc;

use jiff::Timestamp;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::types::{StorageError, TypeConfig};
use super::*;
use crate::rt::clock::FakeClock;
use crate::store::suite::{self, Subject, body, delete, put, transaction};
use crate::store::{Durability, Entry, Write};

/// A store, and what it takes to stop it and open it again.
struct Server {
    store: Arc<RaftStore>,
    tasks: TaskGroup,
}

impl Server {
    async fn start(dir: &Path) -> Self {
        Self::open(dir, Window::default(), FakeClock::new(Timestamp::UNIX_EPOCH)).await.unwrap()
    }

    async fn open(dir: &Path, window: Window, clock: Arc<FakeClock>) -> Result<Self, OpenError> {
        let tasks = TaskGroup::new();
        let options = OpenOptions { window, ..OpenOptions::new(dir, clock, tasks.clone()) };
        Ok(Self { store: RaftStore::open(options).await?, tasks })
    }

    async fn stop(self) {
        assert!(self.tasks.shutdown(Duration::from_secs(10)).await, "the store stops in time");
        assert_eq!(self.tasks.failed(), None);
    }

    async fn write(&self, writes: Vec<Write>) -> Result<Vec<Written>, CommitError> {
        self.store.commit(transaction(vec![], writes)).await
    }

    async fn relaxed(&self, writes: Vec<Write>) {
        let relaxed = Transaction { durability: Durability::Relaxed, ..transaction(vec![], writes) };
        self.store.commit(relaxed).await.unwrap();
    }

    fn text(&self, key: &str) -> String {
        text(&self.store.snapshot().get(key).unwrap())
    }
}

fn text(entry: &Entry) -> String {
    String::from_utf8(entry.bytes.to_vec()).unwrap()
}

fn error(result: Result<Server, OpenError>) -> String {
    match result {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    let kept = parking_lot::Mutex::new(Vec::<(TempDir, TaskGroup)>::new());
    suite::run(async |window| {
        let (dir, clock) = (tempfile::tempdir().unwrap(), FakeClock::new(Timestamp::UNIX_EPOCH));
        let Server { store, tasks } = Server::open(dir.path(), window, clock.clone()).await.unwrap();
        kept.lock().push((dir, tasks));
        Subject { store, clock }
    })
    .await;
    let kept = kept.into_inner();
    for (_, tasks) in &kept {
        assert!(tasks.shutdown(Duration::from_secs(10)).await);
    }
}

#[tokio::test]
async fn leads_at_once_and_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for round in 0..5 {
        let started = clock::instant();
        let server = Server::start(dir.path()).await;
        eprintln!("round {round}: leads after {:?}", started.elapsed());
        assert!(*server.store.leadership().borrow());
        assert_eq!(server.store.snapshot().revision(), expected, "nothing is lost and nothing is jumped over");
        if round > 0 {
            assert_eq!(server.text("a/b/x"), body(&(round - 1).to_string(), expected - 2));
            assert_eq!(server.store.snapshot().get("a/b/y"), None);
        }
        server.write(vec![put("a/b/x", &round.to_string()), put("a/b/y", ""), delete("a/b/y")]).await.unwrap();
        expected += 3;
        if round == 2 {
            server.store.checkpoint().await.unwrap();
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn starts_from_a_checkpoint_and_the_log_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    for number in 0..200 {
        server.write(vec![put(&format!("a/b/{number}"), "before")]).await.unwrap();
    }
    server.store.checkpoint().await.unwrap();
    while server.store.unsaved_log_bytes() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for number in 0..100 {
        server.write(vec![put(&format!("a/b/{number}"), "after")]).await.unwrap();
    }
    server.stop().await;

    let server = Server::start(dir.path()).await;
    let snapshot = server.store.snapshot();
    assert_eq!((snapshot.revision(), snapshot.len()), (300, 200));
    assert_eq!(text(&snapshot.get("a/b/7").unwrap()), body("after", 208));
    assert_eq!(text(&snapshot.get("a/b/107").unwrap()), body("before", 108));
    // A watch goes on across the restart as far back as the log reaches.
    let mut watch = server.store.watch("a/b/", 250).unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().revision, 251);
    assert!(server.store.watch("a/b/", 199).is_err());
    server.stop().await;
    assert!(watch.next_batch().await.is_some(), "what was there when the store closed can still be read");
    assert!(watch.next().await.is_none(), "then the watch ends");
}

#[tokio::test]
async fn relaxed_writes_need_no_sync_and_revisions_are_never_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    server.relaxed(vec![put("a/b/x", "0")]).await;
    let syncs = server.store.log.health().syncs();
    for number in 1..100 {
        server.relaxed(vec![put("a/b/x", &number.to_string())]).await;
    }
    assert_eq!(server.store.log.health().syncs(), syncs, "one sync reserved revisions for all");
    assert_eq!(server.store.snapshot().revision(), 100);
    server.write(vec![put("a/b/y", "")]).await.unwrap();
    assert_eq!(server.store.snapshot().revision(), 101);
    server.stop().await;

    let server = Server::start(dir.path()).await;
    assert_eq!(server.text("a/b/x"), body("99", 100));
    let (revision, ceiling) = server.store.machine.revisions();
    assert_eq!(revision, ceiling, "the next write is above all that may have been lost");
    assert!(revision >= 10_000);
    server.relaxed(vec![put("a/b/x", "again")]).await;
    assert_eq!(server.store.snapshot().revision(), revision + 1);
    server.stop().await;
}

#[tokio::test]
async fn errors_at_the_start_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("store");
    let open = async || Server::open(dir.path(), Window::default(), FakeClock::new(Timestamp::UNIX_EPOCH)).await;
    let server = Server::start(dir.path()).await;
    let in_use = error(open().await);
    assert!(in_use.contains(&format!("is in use by process {}; stop that server", std::process::id())), "{in_use}");
    for number in 0..100 {
        server.write(vec![put(&format!("a/b/{number}"), "some value")]).await.unwrap();
    }
    server.store.checkpoint().await.unwrap();
    while server.store.unsaved_log_bytes() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.write(vec![put("a/b/last", "the last value")]).await.unwrap();
    server.stop().await;

    let damage = |name: &str, part: &[u8]| {
        let path = files.join(name);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        // Everywhere: SQLite leaves old copies in the free parts of its pages.
        let places: Vec<usize> = (0..bad.len()).filter(|at| bad[*at..].starts_with(part)).collect();
        assert!(!places.is_empty(), "{name}");
        places.into_iter().for_each(|at| bad[at] ^= 0x20);
        std::fs::write(&path, bad).unwrap();
        move || std::fs::write(path, good).unwrap()
    };
    for (name, part) in
        [("checkpoint", b"some value".as_slice()), ("raft.db", b"the last value"), ("raft.db", b"SQLite format 3")]
    {
        let repair = damage(name, part);
        let damaged = error(open().await);
        let begins = format!("{} is damaged", files.join(name).display());
        assert!(damaged.contains(&begins) && damaged.contains("restore the data directory from a backup"), "{name}: {damaged}");
        repair();
    }
    for (name, other) in [("checkpoint", "checkpoint"), ("raft.db", "raft.db")] {
        std::fs::rename(files.join(name), files.join("aside")).unwrap();
        let missing = error(open().await);
        assert!(missing.contains(&format!("{} is damaged: it is missing", files.join(other).display())), "{name}: {missing}");
        std::fs::rename(files.join("aside"), files.join(name)).unwrap();
    }
    let server = open().await.unwrap();
    assert_eq!(server.text("a/b/last"), body("the last value", 101));
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let large = "x".repeat(1 << 20);
    let writes = (0..100).map(|number| server.write(vec![put(&format!("a/b/{number}"), &large)]));
    let results = futures_util::future::join_all(writes).await;
    let written = results.iter().filter(|result| result.is_ok()).count();
    assert!((60..100).contains(&written), "{written}");
    assert!(results.iter().all(|result| result.is_ok() || *result == Err(CommitError::Busy)));
    assert_eq!(server.store.snapshot().len(), written);
    server.stop().await;
}

/// Makes empty stores for openraft's own suite.
struct Empty;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for Empty {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::open(dir.path(), Window::default(), CancellationToken::new()).unwrap();
        let log = Log::open(dir.path()).unwrap();
        Ok((dir, LogStore::new(log, false), machine))
    }
}

#[test]
fn passes_the_suite_of_openraft() {
    Suite::test_all(Empty).unwrap();
}

/// Carries calls between stores of one process.
#[derive(Default)]
struct Wires(parking_lot::Mutex<std::collections::HashMap<u64, Arc<RaftStore>>>);

#[async_trait]
impl Transport for Wires {
    async fn call(&self, target: u64, address: &str, call: Call, body: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        let peer = self.0.lock().get(&target).cloned();
        match peer {
            Some(peer) => peer.answer(call, &body).await,
            None => Err(TransportError::Unreachable(target, address.to_owned())),
        }
    }
}

impl Wires {
    async fn start(self: &Arc<Self>, dir: &Path, node_id: u64) -> Server {
        let tasks = TaskGroup::new();
        let options = OpenOptions::new(dir, FakeClock::new(Timestamp::UNIX_EPOCH), tasks.clone());
        let transport = Arc::clone(self) as Arc<dyn Transport>;
        let address = format!("server-{node_id}");
        let options = OpenOptions { node_id, address, transport, bootstrap: node_id == 1, ..options };
        let store = RaftStore::open(options).await.unwrap();
        self.0.lock().insert(node_id, Arc::clone(&store));
        Server { store, tasks }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = clock::instant() + Duration::from_secs(20);
    while !holds() {
        assert!(clock::instant() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_becomes_three_and_loses_one() {
    let (wires, dirs) = (Arc::new(Wires::default()), [(); 3].map(|()| tempfile::tempdir().unwrap()));
    let first = wires.start(dirs[0].path(), 1).await;
    for number in 0..200 {
        first.write(vec![put(&format!("a/b/{number}"), "alone")]).await.unwrap();
    }
    // The log before the checkpoint is gone: the others begin with the checkpoint.
    first.store.checkpoint().await.unwrap();
    until("a checkpoint", || first.store.unsaved_log_bytes() == 0).await;
    first.relaxed(vec![put("a/b/relaxed", "alone")]).await;
    let others = [wires.start(dirs[1].path(), 2).await, wires.start(dirs[2].path(), 3).await];
    assert!(matches!(others[0].write(vec![put("a/b/x", "")]).await, Err(CommitError::NoLeader(_))));
    first.store.add_member(2, "server-2").await.unwrap();
    first.store.add_member(3, "server-3").await.unwrap();
    for number in 100..300 {
        first.write(vec![put(&format!("a/b/{number}"), "together")]).await.unwrap();
    }
    first.relaxed(vec![put("a/b/relaxed", "together")]).await;
    let revision = first.store.snapshot().revision();
    for other in &others {
        until("the others follow", || other.store.snapshot().revision() == revision).await;
        assert!(other.store.snapshot().iter().eq(first.store.snapshot().iter()), "all hold the same");
    }

    wires.0.lock().remove(&1);
    first.stop().await;
    until("a new leader", || others.iter().any(|other| *other.store.leadership().borrow())).await;
    let (leaders, followers): (Vec<Server>, Vec<Server>) =
        others.into_iter().partition(|other| *other.store.leadership().borrow());
    let [leader] = &leaders[..] else { panic!("one leader") };
    assert!(leader.store.snapshot().revision() >= revision, "nothing is lost");
    leader.store.barrier().await.unwrap();
    let written = leader.write(vec![put("a/b/x", "after")]).await.unwrap();
    let [Written::Put(entry)] = &written[..] else { panic!("{written:?}") };
    assert!(entry.revision > 10_000, "a new leader goes on above the ceiling");
    until("the follower follows", || followers[0].store.snapshot().get("a/b/x").as_ref() == Some(entry)).await;
    wires.0.lock().clear();
    for server in leaders.into_iter().chain(followers) {
        server.stop().await;
    }
}
