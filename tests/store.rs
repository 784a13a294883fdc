//! The store against what happens to machines: SIGKILL at any moment under load, and a full disk.
//!
//! `ORCH_CRASH_KILLS` sets the number of kills, `ORCH_SEED` repeats a run.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orch::rt::clock::instant;
use orch::rt::{SystemClock, TaskGroup, random};
use orch::store::raft::{OpenError, OpenOptions, RaftStore};
use orch::store::{CommitError, Draft, Durability, Index, Snapshot, Store, Transaction, Write, Written};

const CHILD_DIR: &str = "ORCH_CRASH_CHILD_DIR";
const CHILD_SEED: &str = "ORCH_CRASH_CHILD_SEED";
const WRITERS: u64 = 12;

fn put(key: &str, value: &str) -> Write {
    let head = r#"{"metadata":{"resourceVersion":""#;
    let body = Bytes::from(format!(r#"{head}"}},"value":"{value}"}}"#));
    let app = (Arc::from("app"), Arc::from(value.get(..1).unwrap_or("")));
    let index = Index { labels: vec![app], fields: vec![] };
    Write::Put { key: key.into(), draft: Draft { body, revision_at: head.len() as u32, index } }
}

fn value(snapshot: &Snapshot, key: &str) -> Option<(String, u64)> {
    let entry = snapshot.get(key)?;
    let text = std::str::from_utf8(&entry.bytes).unwrap();
    let revision = format!(r#"{{"metadata":{{"resourceVersion":"{}"}},"value":""#, entry.revision);
    let value = text.strip_prefix(&revision).unwrap_or_else(|| panic!("{key} has no revision {} in {text}", entry.revision));
    Some((value.trim_end_matches("\"}").to_owned(), entry.revision))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn open(dir: &Path) -> (Arc<RaftStore>, TaskGroup) {
    let tasks = TaskGroup::new();
    let opened = RaftStore::open(OpenOptions::new(dir, Arc::new(SystemClock), tasks.clone())).await;
    (opened.unwrap_or_else(|error| panic!("{error}: {error:?}")), tasks)
}

async fn close(tasks: &TaskGroup) {
    assert!(tasks.shutdown(Duration::from_secs(10)).await);
    assert_eq!(tasks.failed(), None);
}

/// Numbers from a seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn key(writer: u64, name: &str) -> String {
    format!("test/crash/{writer}/{name}")
}

/// The `number`th transaction of a writer: `a` and `b` carry the number, `c` is there if it is even.
fn step(writer: u64, number: u64) -> Transaction {
    let text = number.to_string();
    let c = key(writer, "c");
    let third = if number.is_multiple_of(2) { put(&c, &text) } else { Write::Delete { key: c.into() } };
    let filler = "x".repeat((number as usize * 37) % 2_000);
    let writes = vec![put(&key(writer, "a"), &text), put(&key(writer, "filler"), &filler), third, put(&key(writer, "b"), &text)];
    Transaction { guards: vec![], writes, durability: Durability::Synced }
}

fn number(snapshot: &Snapshot, writer: u64, name: &str) -> Option<(u64, u64)> {
    value(snapshot, &key(writer, name)).map(|(value, revision)| (value.parse().unwrap(), revision))
}

/// Not a test by itself: what [`survives_sigkill`] starts and kills. Writes until it is killed, and says what was acknowledged.
#[test]
fn crash_child() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let seed: u64 = std::env::var(CHILD_SEED).unwrap().parse().unwrap();
    let say = |line: String| std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let (store, tasks) = open(&dir).await;
        let snapshot = store.snapshot();
        let found = (0..WRITERS).filter_map(|writer| number(&snapshot, writer, "b").map(|(last, at)| (writer, last, at)));
        say(found.map(|(writer, last, at)| format!("\nfound {writer} {last} {at}")).collect());
        say("\nready\n".to_owned());
        for writer in 0..WRITERS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let mut next = number(&store.snapshot(), writer, "a").map_or(0, |(number, _)| number) + 1;
                loop {
                    let written = store.commit(step(writer, next)).await.unwrap();
                    let Some(Written::Put(entry)) = written.last() else { panic!("{written:?}") };
                    say(format!("ack {writer} {next} {}\n", entry.revision));
                    next += 1;
                }
            });
        }
        let cheap = Arc::clone(&store);
        tasks.spawn(async move {
            for beat in 0_u64.. {
                let writes = vec![put("test/leases/node", &beat.to_string())];
                let relaxed = Transaction { guards: vec![], writes, durability: Durability::Relaxed };
                let written = cheap.commit(relaxed).await.unwrap();
                let [Written::Put(entry)] = &written[..] else { panic!("{written:?}") };
                say(format!("beat {}\n", entry.revision));
            }
        });
        let mut dice = Dice(seed | 1);
        loop {
            tokio::time::sleep(Duration::from_millis(5 + dice.below(60))).await;
            store.checkpoint().await.unwrap();
        }
    });
}

fn start_child(dir: &Path, seed: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash_child", "--nocapture", "--test-threads=1"]).env(CHILD_DIR, dir);
    command.env(CHILD_SEED, seed.to_string()).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// What the children said, and what therefore must be in the store.
#[derive(Default)]
struct Said {
    /// By writer, the last number that was acknowledged, and its revision.
    acknowledged: HashMap<u64, (u64, u64)>,
    /// Every revision that was given out.
    revisions: HashMap<u64, String>,
    newest: u64,
    /// The newest revision before this child.
    before: u64,
    /// Children that were killed after their start.
    ready: u64,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["ack", writer, number, revision] => {
                let revision = self.revision(revision, line);
                let (writer, number): (u64, u64) = (writer.parse().unwrap(), number.parse().unwrap());
                let last = self.acknowledged.insert(writer, (number, revision));
                assert!(last.is_none_or(|(last, at)| last < number && at < revision), "{line} after {last:?}");
            }
            // A transaction whose acknowledgement was not heard may be there.
            ["found", writer, number, revision] => {
                let found: (u64, u64) = (number.parse().unwrap(), revision.parse().unwrap());
                let last = self.acknowledged.insert(writer.parse().unwrap(), found).unwrap_or_default();
                assert!(found == last || (found.0 == last.0 + 1 && found.1 > last.1), "{line} after {last:?}");
                self.newest = self.newest.max(found.1);
            }
            ["beat", revision] => drop(self.revision(revision, line)),
            _ => {}
        }
    }

    fn revision(&mut self, text: &str, line: &str) -> u64 {
        let revision: u64 = text.parse().unwrap();
        assert!(revision > self.before, "{line}: revisions go on above {}", self.before);
        let twice = self.revisions.insert(revision, line.to_owned());
        assert_eq!(twice, None, "{line}: revision {revision} was used before");
        self.newest = self.newest.max(revision);
        revision
    }

    fn check(&self, snapshot: &Snapshot) {
        assert!(snapshot.revision() >= self.newest, "{} was acknowledged, {} is there", self.newest, snapshot.revision());
        for writer in 0..WRITERS {
            let (a, b, c) = (number(snapshot, writer, "a"), number(snapshot, writer, "b"), number(snapshot, writer, "c"));
            let (stored, revision) = b.unwrap_or_default();
            assert_eq!(a.map_or(0, |a| a.0), stored, "writer {writer}: half a transaction");
            let even = stored > 0 && stored.is_multiple_of(2);
            assert_eq!(c.map(|c| c.0), even.then_some(stored), "writer {writer}: half a transaction");
            let (acknowledged, at) = self.acknowledged.get(&writer).copied().unwrap_or_default();
            assert!(
                stored == acknowledged || stored == acknowledged + 1,
                "writer {writer}: {acknowledged} acknowledged, {stored} there"
            );
            assert!(
                stored != acknowledged || revision == at,
                "writer {writer}: {acknowledged} has revision {revision}, not {at}"
            );
        }
    }
}

#[test]
fn survives_sigkill() {
    let setting = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (seed, kills) = (setting("ORCH_SEED", random::below(u64::MAX)), setting("ORCH_CRASH_KILLS", 200));
    eprintln!("ORCH_SEED={seed} ORCH_CRASH_KILLS={kills}");
    let (mut dice, mut said, dir) = (Dice(seed | 1), Said::default(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    for kill in 0..kills {
        let mut child = start_child(dir, dice.below(u64::MAX));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        said.before = said.newest;
        // One in eight is killed while it starts.
        if dice.below(8) > 0 {
            lines.by_ref().take_while(|line| line != "ready").for_each(|line| said.hear(&line));
            said.ready += 1;
        }
        let delay = Duration::from_micros(dice.below(250_000));
        let (heard, status) = std::thread::scope(|scope| {
            let heard = scope.spawn(|| lines.collect::<Vec<_>>());
            let (_nobody, timer) = std::sync::mpsc::channel::<()>();
            assert!(timer.recv_timeout(delay).is_err());
            child.kill().unwrap();
            (heard.join().unwrap(), child.wait().unwrap())
        });
        assert_eq!(status.code(), None, "kill {kill}: the child ended by itself: {status}");
        heard.iter().for_each(|line| said.hear(line));
        // Otherwise the next child finds the files as the kill left them, and says what it found.
        if dice.below(2) == 0 || kill + 1 == kills {
            runtime().block_on(async {
                let (store, tasks) = open(dir).await;
                said.check(&store.snapshot());
                close(&tasks).await;
            });
        }
    }
    let (transactions, checkpointed) = (said.revisions.len(), dir.join("store/checkpoint").exists());
    let (ready, newest) = (said.ready, said.newest);
    eprintln!("{kills} kills, {ready} of them under load, {transactions} acknowledged transactions, up to revision {newest}");
    assert!(checkpointed && transactions as u64 > kills, "there was load");
}

/// Runs in a mount namespace of its own on a file system of `megabytes`, which is gone afterwards.
fn on_small_disk(megabytes: u32, test: impl AsyncFnOnce(PathBuf) + Send + 'static) {
    std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace (tests run as root)");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let options = format!("size={megabytes}m");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(&*options)).unwrap();
        runtime().block_on(test(dir.path().to_owned()));
    })
    .join()
    .unwrap();
}

async fn write(store: &RaftStore, key: &str, value: &str, durability: Durability) -> Result<Vec<Written>, CommitError> {
    store.commit(Transaction { guards: vec![], writes: vec![put(key, value)], durability }).await
}

/// Fills the disk with objects. Returns how many were acknowledged.
async fn fill(store: &RaftStore, value: &str) -> u64 {
    let mut written = store.snapshot().count("test/full/") as u64;
    loop {
        match write(store, &format!("test/full/{written}"), value, Durability::Synced).await {
            Ok(_) => written += 1,
            Err(CommitError::DiskFull { path }) => {
                assert!(!path.is_empty());
                return written;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space() {
    on_small_disk(64, async |dir| {
        std::fs::write(dir.join("ballast"), vec![1; 20 << 20]).unwrap();
        let data = dir.join("data");
        let (store, tasks) = open(&data).await;
        let mut watch = store.watch("test/full/", 0).unwrap();
        let large = "x".repeat(100_000);
        let written = fill(&store, &large).await;
        eprintln!("full after {written} objects");
        for durability in [Durability::Synced, Durability::Relaxed] {
            let refused = write(&store, "test/full/refused", "", durability).await.unwrap_err();
            let text = refused.to_string();
            assert!(text.contains(&format!("the disk that holds {} is full; free space there", data.display())), "{text}");
        }
        assert!(store.stats().disk_full);
        assert_eq!(store.snapshot().count("test/full/") as u64, written, "reads go on, and show what was acknowledged");
        for revision in 1..=written {
            assert_eq!(watch.next().await.unwrap().unwrap().revision, revision);
        }
        close(&tasks).await;

        let (store, tasks) = open(&data).await;
        assert_eq!(store.snapshot().count("test/full/") as u64, written, "a server starts on a full disk and answers reads");
        std::fs::remove_file(dir.join("ballast")).unwrap();
        let deadline = instant() + Duration::from_secs(10);
        while let Err(error) = write(&store, "test/full/again", "", Durability::Synced).await {
            assert!(matches!(error, CommitError::DiskFull { .. }) && instant() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!store.stats().disk_full);
        assert_eq!(fill(&store, &large).await, store.snapshot().count("test/full/") as u64);
        close(&tasks).await;
    });
}

#[test]
fn a_second_server_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let (_store, tasks) = open(dir.path()).await;
        let second = RaftStore::open(OpenOptions::new(dir.path(), Arc::new(SystemClock), TaskGroup::new())).await;
        let Err(OpenError::Locked { pid, .. }) = second else { panic!("opened twice") };
        assert_eq!(pid, std::process::id().to_string());
        close(&tasks).await;
    });
}

/// Durable writes of 1 KB a second, printed, not judged: the machine is shared.
#[test]
fn throughput() {
    let dir = tempfile::tempdir().unwrap();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(async {
        let (store, tasks) = open(dir.path()).await;
        let value = "v".repeat(1_000);
        for writers in [1, 16, 64, 256] {
            let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
            let group = TaskGroup::new();
            let (started, syncs) = (instant(), store.stats().log_syncs);
            for writer in 0..writers {
                let (store, done, stop, value) = (Arc::clone(&store), Arc::clone(&done), Arc::clone(&stop), value.clone());
                group.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        write(&store, &format!("test/throughput/{writer}"), &value, Durability::Synced).await.unwrap();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            stop.store(true, Ordering::Relaxed);
            assert!(group.shutdown(Duration::from_secs(10)).await);
            let seconds = started.elapsed().as_secs_f64();
            let (writes, syncs) = (done.load(Ordering::Relaxed) as f64, (store.stats().log_syncs - syncs) as f64);
            eprintln!("{writers} writers: {:.0} writes/s, {:.1} a sync", writes / seconds, writes / syncs);
            assert!(writes >= f64::from(writers));
        }
        close(&tasks).await;
    });
}
