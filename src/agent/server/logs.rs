//! Container logs: Docker's json-file, rotated files included, with the kubelet's parameters. Following waits for the kernel to
//! say that something was written, and for the pod's worker to say that the container has ended.

use std::borrow::Cow;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::{HeaderValue, Response, header};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use inotify::{EventStream, Inotify, WatchMask};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::watch;

use super::query::Query;
use super::{KubeletServer, lookup_error, tail};
use crate::agent::pods::Pods;
use crate::api::ApiError;
use crate::cri::State;
use crate::http::{BoxError, HttpResponse};
use crate::rt::TaskGroup;

/// Bytes read at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Longest entry; Docker splits lines at 16 KiB.
const ENTRY_BYTES: usize = 1 << 20;

/// One entry of Docker's json-file.
#[derive(Debug, Deserialize)]
pub(super) struct Entry<'a> {
    #[serde(borrow, default)]
    pub(super) log: Cow<'a, str>,
    #[serde(borrow, default)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

impl<'a> Entry<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// What of a log is wanted, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail_lines: Option<u64>,
    since: Option<Timestamp>,
    limit_bytes: Option<u64>,
    /// `stdout` or `stderr`; `None` is both.
    stream: Option<&'static str>,
}

impl Options {
    fn parse(query: &Query, now: Timestamp) -> Result<Self, ApiError> {
        let number = |name: &'static str| match query.get(&[name]).filter(|text| !text.is_empty()).map(str::parse::<u64>) {
            None => Ok(None),
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(ApiError::bad_request(format!("{name} must be a non-negative integer"))),
        };
        let since_time = match query.get(&["sinceTime"]).filter(|text| !text.is_empty()).map(str::parse::<Timestamp>) {
            None => None,
            Some(Ok(time)) => Some(time),
            Some(Err(_)) => return Err(ApiError::bad_request("sinceTime must be an RFC 3339 time")),
        };
        let ago = |seconds: u64| {
            let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            now.saturating_sub(span).unwrap_or(Timestamp::MIN)
        };
        Ok(Self {
            follow: query.is_on(&["follow"]),
            previous: query.is_on(&["previous"]),
            timestamps: query.is_on(&["timestamps"]),
            tail_lines: number("tailLines")?,
            since: number("sinceSeconds")?.map(ago).or(since_time),
            limit_bytes: number("limitBytes")?,
            stream: match query.get(&["stream"]) {
                Some("Stdout") => Some("stdout"),
                Some("Stderr") => Some("stderr"),
                _ => None,
            },
        })
    }
}

impl KubeletServer {
    pub(super) async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &Query,
    ) -> Result<HttpResponse, ApiError> {
        let options = Options::parse(query, self.clock.now())?;
        let lookup = self.pods.container(namespace, pod, container).map_err(lookup_error)?;
        let instance = lookup.for_logs(pod, options.previous).map_err(lookup_error)?;
        let path = match &instance.log_path {
            Some(path) => path.clone(),
            None => self.log_path(&instance.id).await?,
        };
        let life = Life {
            pods: Arc::clone(&self.pods),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            id: instance.id.clone(),
            changes: self.pods.changes(),
        };
        let log = Log::open(path, options, life).await.map_err(|error| {
            ApiError::internal(format!("failed to open the log of container {container:?} in pod {pod:?}: {error}"))
        })?;
        let frames = stream::unfold(log, |mut log| async move {
            let next = log.next().await.transpose()?;
            Some((next.map(Frame::data).map_err(BoxError::from), log))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    async fn log_path(&self, id: &str) -> Result<PathBuf, ApiError> {
        let detail = self.runtime.inspect(id).await.map_err(ApiError::internal)?;
        detail.log_path.ok_or_else(|| ApiError::internal("the container has no log file: its log driver is not json-file"))
    }
}

/// By which a follower knows that nothing more will come.
struct Life {
    pods: Arc<Pods>,
    namespace: String,
    pod: String,
    container: String,
    id: String,
    changes: watch::Receiver<()>,
}

impl Life {
    /// Whether the container has ended. If it has not, [`Self::changes`] tells when to ask again.
    fn is_over(&mut self) -> bool {
        // Seen before the look-up, so that what changes after it is told.
        self.changes.mark_unchanged();
        let lookup = self.pods.container(&self.namespace, &self.pod, &self.container);
        let current = lookup.ok().and_then(|lookup| lookup.current);
        current.is_none_or(|instance| instance.id != self.id || instance.state == State::Exited)
    }
}

/// A log being read.
struct Log {
    path: PathBuf,
    options: Options,
    life: Life,
    file: File,
    inode: u64,
    /// Files that were begun after the present one, the next one last.
    newer: Vec<std::fs::File>,
    /// Nothing is written to the present file any more: it was rotated.
    is_closed: bool,
    /// Bytes behind the last whole entry.
    pending: BytesMut,
    watch: Option<EventStream<[u8; 1024]>>,
    /// The last entry did not end its line.
    in_line: bool,
    sent: u64,
    is_over: bool,
}

impl Log {
    async fn open(path: PathBuf, options: Options, life: Life) -> io::Result<Self> {
        // Before reading, so that nothing is written unseen.
        let watch = if options.follow { Some(watch(&path)?) } else { None };
        let (log, lines) = (path.clone(), options.tail_lines);
        let found = TaskGroup::blocking(move || {
            let mut files = tail::open(&log)?;
            let start = lines.map_or(Ok((0, 0)), |lines| tail::start(&mut files, lines))?;
            Ok::<_, io::Error>((files, start))
        });
        let (files, (index, offset)) = found.await.map_err(io::Error::other)??;
        let mut newer: Vec<std::fs::File> = files.into_iter().skip(index).rev().collect();
        let first = newer.pop().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, path.display().to_string()))?;
        let inode = first.metadata()?.ino();
        let mut file = File::from_std(first);
        file.seek(SeekFrom::Start(offset)).await?;
        let (pending, in_line, sent, is_over) = (BytesMut::new(), false, 0, options.limit_bytes == Some(0));
        Ok(Self { path, options, life, file, inode, newer, is_closed: false, pending, watch, in_line, sent, is_over })
    }

    /// The next part of the log; `None` at its end. When following, waits for more.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.is_over {
            self.pending.reserve(BLOCK_BYTES);
            if self.file.read_buf(&mut self.pending).await? > 0 {
                let text = self.take_entries();
                if !text.is_empty() {
                    return Ok(Some(text));
                }
                continue;
            }
            if self.advance().await? {
                continue;
            }
            if !self.options.follow {
                break;
            }
            // Asked before the last look: what was written until the container's end is read.
            let is_over = self.life.is_over();
            if is_over && self.file.metadata().await?.len() <= self.file.stream_position().await? && self.is_newest() {
                break;
            }
            if !is_over {
                self.wait().await;
            }
        }
        Ok(None)
    }

    /// Goes on to the file after the one that was read to its end. Returns whether there is more to read.
    async fn advance(&mut self) -> io::Result<bool> {
        if self.newer.is_empty() {
            if self.is_newest() {
                return Ok(false);
            }
            // Rotated meanwhile: what was written to it after its end was seen and before it was closed is still to be read.
            if !std::mem::replace(&mut self.is_closed, true) {
                return Ok(true);
            }
            let log = self.path.clone();
            let files = TaskGroup::blocking(move || tail::open(&log)).await.map_err(io::Error::other)??;
            let inodes: io::Result<Vec<u64>> = files.iter().map(|file| Ok(file.metadata()?.ino())).collect();
            // If ours is gone by now, all that are left are newer.
            let after = inodes?.iter().position(|inode| *inode == self.inode).map_or(0, |at| at + 1);
            self.newer = files.into_iter().skip(after).rev().collect();
        }
        let Some(next) = self.newer.pop() else { return Ok(false) };
        self.inode = next.metadata()?.ino();
        self.file = File::from_std(next);
        self.file.rewind().await?;
        self.is_closed = false;
        self.pending.clear();
        Ok(true)
    }

    /// Whether the file that is read is the one that is written.
    fn is_newest(&self) -> bool {
        tail::inode(&self.path).is_none_or(|inode| inode == self.inode)
    }

    /// Waits until something was written, the log was rotated, or the container may have ended.
    async fn wait(&mut self) {
        let changed = async {
            match &mut self.watch {
                Some(watch) => drop(watch.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            // The look-ups live as long as we do.
            _ = self.life.changes.changed() => {}
        }
    }

    /// The text of the whole entries that were read.
    fn take_entries(&mut self) -> Bytes {
        let mut text = BytesMut::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line = self.pending.split_to(end + 1);
            // A file that was cut by a crash has a line that is none.
            if let Some(entry) = Entry::parse(&line) {
                self.append(&entry, &mut text);
            }
            if self.is_over {
                break;
            }
        }
        if self.pending.len() > ENTRY_BYTES {
            self.pending.clear();
        }
        text.freeze()
    }

    fn append(&mut self, entry: &Entry<'_>, text: &mut BytesMut) {
        if self.options.stream.is_some_and(|stream| stream != entry.stream) {
            return;
        }
        if let Some(since) = self.options.since
            && entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        let before = text.len();
        if self.options.timestamps && !self.in_line {
            text.extend_from_slice(fixed_nanos(&entry.time).as_bytes());
            text.extend_from_slice(b" ");
        }
        text.extend_from_slice(entry.log.as_bytes());
        self.in_line = !entry.log.ends_with('\n');
        self.sent += (text.len() - before) as u64;
        if let Some(limit) = self.options.limit_bytes
            && self.sent >= limit
        {
            let excess = usize::try_from(self.sent - limit).unwrap_or(0);
            text.truncate(text.len().saturating_sub(excess));
            self.is_over = true;
        }
    }
}

/// Docker leaves out the zeros at the end of a fraction; the kubelet writes all nine digits.
fn fixed_nanos(time: &str) -> String {
    let (rest, zone) = time.split_at(time.len() - usize::from(time.ends_with('Z')));
    let (seconds, fraction) = rest.split_once('.').unwrap_or((rest, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

fn watch(log: &Path) -> io::Result<EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    let folder = log.parent().unwrap_or(Path::new("/"));
    inotify.watches().add(folder, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF)?;
    inotify.into_event_stream([0; 1024])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::pods::{ContainerInstance, ContainerLookup, PodView};

    fn line(text: &str, stream: &str, second: u32) -> String {
        let time = format!("2026-01-01T00:00:{second:02}.5Z");
        format!("{}\n", serde_json::json!({ "log": text, "stream": stream, "time": time }))
    }

    fn nobody() -> Life {
        let (name, pods) = (String::new(), Arc::<Pods>::default());
        let changes = pods.changes();
        Life { pods, namespace: name.clone(), pod: name.clone(), container: name.clone(), id: name, changes }
    }

    async fn read(path: &Path, query: &str) -> String {
        let options = Options::parse(&Query::parse(query), "2026-01-01T00:00:10Z".parse().unwrap()).unwrap();
        let mut log = Log::open(path.to_owned(), options, nobody()).await.unwrap();
        let mut text = String::new();
        while let Some(part) = log.next().await.unwrap() {
            text += std::str::from_utf8(&part).unwrap();
        }
        text
    }

    #[tokio::test]
    async fn parameters_choose_what_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x-json.log");
        std::fs::write(tail::rotated(&path, 1), line("a\n", "stdout", 1) + &line("b", "stdout", 2)).unwrap();
        let rest = "not json\n".to_owned() + &line("c\n", "stdout", 3) + &line("\"é\"\n", "stderr", 4);
        std::fs::write(&path, rest).unwrap();
        let cases = [
            ("", "a\nbc\n\"é\"\n"),
            ("follow=true", "a\nbc\n\"é\"\n"),
            ("tailLines=1", "\"é\"\n"),
            ("tailLines=0", ""),
            ("sinceSeconds=7", "c\n\"é\"\n"),
            ("sinceTime=2026-01-01T00:00:04Z", "\"é\"\n"),
            ("limitBytes=3", "a\nb"),
            ("limitBytes=0", ""),
            ("stream=Stderr", "\"é\"\n"),
            ("timestamps=true&stream=Stdout", "2026-01-01T00:00:01.500000000Z a\n2026-01-01T00:00:02.500000000Z bc\n"),
        ];
        for (query, expected) in cases {
            assert_eq!(read(&path, query).await, expected, "{query}");
        }
    }

    #[tokio::test]
    async fn follows_over_rotations_until_the_container_ends() {
        const LINES: u32 = 3_000;
        const LINES_A_FILE: u32 = 70;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x-json.log");
        let pods = Arc::<Pods>::default();
        let publish = |state: State| {
            let current = ContainerInstance { id: "x".to_owned(), state, attempt: 0, pid: None, log_path: None, tty: false };
            let name = || "n".to_owned();
            let lookup = ContainerLookup {
                pod_uid: name(),
                container: name(),
                current: Some(current),
                previous: None,
                waiting_reason: None,
            };
            let mut pod = k8s_openapi::api::core::v1::Pod::default();
            (pod.metadata.namespace, pod.metadata.name) = (Some(name()), Some(name()));
            pods.publish(PodView { pod: Arc::new(pod), containers: [(name(), lookup)].into(), is_seen: true });
        };
        publish(State::Running);
        std::fs::write(&path, "").unwrap();
        let (changes, name) = (pods.changes(), || "n".to_owned());
        let life =
            Life { pods: Arc::clone(&pods), namespace: name(), pod: name(), container: name(), id: "x".to_owned(), changes };
        let options = Options { follow: true, ..Options::default() };
        let mut log = Log::open(path.clone(), options, life).await.unwrap();
        let write = async {
            for number in 0..LINES {
                if number % LINES_A_FILE == LINES_A_FILE - 1 {
                    for place in (1..LINES / LINES_A_FILE + 1).rev().filter(|place| tail::rotated(&path, *place).exists()) {
                        std::fs::rename(tail::rotated(&path, place), tail::rotated(&path, place + 1)).unwrap();
                    }
                    std::fs::rename(&path, tail::rotated(&path, 1)).unwrap();
                }
                let mut file = std::fs::File::options().create(true).append(true).open(&path).unwrap();
                std::io::Write::write_all(&mut file, line(&format!("{number}\n"), "stdout", 1).as_bytes()).unwrap();
                if number % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            publish(State::Exited);
        };
        let read = async {
            let mut text = String::new();
            while let Some(part) = log.next().await.unwrap() {
                text += std::str::from_utf8(&part).unwrap();
            }
            text
        };
        let ((), text) = tokio::join!(write, read);
        assert_eq!(text, (0..LINES).map(|number| format!("{number}\n")).collect::<String>());
    }

    #[test]
    fn wrong_parameters_are_refused() {
        for query in ["tailLines=-1", "sinceSeconds=x", "sinceTime=yesterday", "limitBytes=1.5"] {
            assert!(Options::parse(&Query::parse(query), Timestamp::UNIX_EPOCH).is_err(), "{query}");
        }
    }
}
