//! The checkpoint: the whole state at one log position, in one sequential file that is replaced as a whole.
//!
//! A frame is its length, its checksum and its bytes. The first frame is the [`Header`], each other holds some objects, an empty
//! one ends the file. Sequential reading makes a restart quick; the checksums make damage known.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{OpenError, crc, sync_dir};
use crate::rt::random;
use crate::store::state::{Snapshot, State};
use crate::store::{Entry, Index, Revision};

const MAGIC: &[u8; 8] = b"orchck01";
/// Bytes after which a frame is closed.
const FRAME_BYTES: usize = 256 << 10;
/// No frame is larger: one object may pass [`FRAME_BYTES`].
const FRAME_MAX: usize = 64 << 20;

/// What stands before the objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub revision: Revision,
    pub ceiling: Revision,
    pub time_ms: i64,
    pub objects: u64,
    /// What the consensus layer wants to know again.
    pub position: Vec<u8>,
}

#[derive(Serialize)]
struct Put<'a> {
    key: &'a str,
    revision: Revision,
    created: Revision,
    revision_at: u32,
    bytes: &'a Bytes,
    index: &'a Index,
}

#[derive(Deserialize)]
struct Stored<'a> {
    key: &'a str,
    revision: Revision,
    created: Revision,
    revision_at: u32,
    #[serde(borrow)]
    bytes: &'a [u8],
    #[serde(borrow)]
    index: Pairs<'a>,
}

#[derive(Deserialize)]
struct Pairs<'a> {
    #[serde(borrow)]
    labels: Vec<(&'a str, &'a str)>,
    #[serde(borrow)]
    fields: Vec<(&'a str, &'a str)>,
}

/// The file of the checkpoint in a directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("checkpoint")
}

/// A file beside the checkpoint that has no name and goes away with its last user: a checkpoint that is being received.
///
/// # Errors
/// When it cannot be made.
pub fn unnamed(dir: &Path) -> io::Result<File> {
    let (path, file) = temporary(dir)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn temporary(dir: &Path) -> io::Result<(PathBuf, File)> {
    let path = dir.join(format!("checkpoint.{}.tmp", random::suffix(8)));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    Ok((path, file))
}

/// Removes what an interrupted server left.
///
/// # Errors
/// When the directory cannot be read, or a file in it cannot be removed.
pub fn remove_temporaries(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("checkpoint.") && name.ends_with(".tmp") {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Writes a checkpoint beside the last one, makes it durable, and takes the last one's place.
///
/// # Errors
/// When the disk is full or broken: the last checkpoint stays as it was.
pub fn write(dir: &Path, snapshot: &Snapshot, time_ms: i64, position: Vec<u8>) -> io::Result<()> {
    let (temporary, file) = temporary(dir)?;
    let written = write_to(file, snapshot, time_ms, position).and_then(|()| install(dir, &temporary));
    if written.is_err() {
        std::fs::remove_file(&temporary)?;
    }
    written
}

/// Makes a written file the checkpoint, durably.
fn install(dir: &Path, temporary: &Path) -> io::Result<()> {
    File::open(temporary)?.sync_all()?;
    std::fs::rename(temporary, path(dir))?;
    sync_dir(dir)
}

fn write_to(file: File, snapshot: &Snapshot, time_ms: i64, position: Vec<u8>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(FRAME_BYTES, file);
    out.write_all(MAGIC)?;
    let ceiling = snapshot.state().ceiling;
    let header = Header { revision: snapshot.revision(), ceiling, time_ms, objects: snapshot.len() as u64, position };
    frame(&mut out, &postcard::to_stdvec(&header).map_err(io::Error::other)?)?;
    let mut bytes = Vec::with_capacity(2 * FRAME_BYTES);
    for entry in snapshot.iter() {
        let Entry { key, revision, created, bytes: body, revision_at, index } = &**entry;
        let put = Put { key, revision: *revision, created: *created, revision_at: *revision_at, bytes: body, index };
        bytes = postcard::to_extend(&put, bytes).map_err(io::Error::other)?;
        if bytes.len() >= FRAME_BYTES {
            frame(&mut out, &bytes)?;
            bytes.clear();
        }
    }
    if !bytes.is_empty() {
        frame(&mut out, &bytes)?;
    }
    frame(&mut out, &[])?;
    out.flush()
}

fn frame(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&crc(&[&length, bytes]).to_le_bytes())?;
    out.write_all(bytes)
}

/// Reads a checkpoint; `None` if there is none.
///
/// # Errors
/// [`OpenError::Corrupt`] if a checksum is wrong or the file ends too soon.
pub fn read(path: &Path) -> Result<Option<(Header, Snapshot)>, OpenError> {
    match File::open(path) {
        Ok(file) => read_from(path, file).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::io("open", path)(error)),
    }
}

/// Reads an open file from its beginning; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn read_from(path: &Path, mut file: File) -> Result<(Header, Snapshot), OpenError> {
    file.rewind().map_err(OpenError::io("read", path))?;
    let mut input = Input { path, file: BufReader::with_capacity(FRAME_BYTES, file), frame: Vec::new() };
    let mut magic = [0_u8; MAGIC.len()];
    input.fill(&mut magic)?;
    if &magic != MAGIC {
        return Err(OpenError::corrupt(path, "it is not a checkpoint"));
    }
    input.next()?;
    let header: Header = postcard::from_bytes(&input.frame).map_err(|error| OpenError::corrupt(path, error.to_string()))?;
    let mut state = State::empty_at(header.revision, header.ceiling);
    let (mut names, mut objects) = (Names::default(), 0_u64);
    while input.next()? {
        let mut rest = &input.frame[..];
        while !rest.is_empty() {
            let (stored, next) =
                postcard::take_from_bytes::<Stored<'_>>(rest).map_err(|error| OpenError::corrupt(path, error.to_string()))?;
            let entry = Arc::new(stored.entry(&mut names));
            state.set(&Arc::clone(&entry.key), Some(&entry));
            objects += 1;
            rest = next;
        }
    }
    if objects != header.objects {
        return Err(OpenError::corrupt(path, format!("it has {objects} of {} objects", header.objects)));
    }
    Ok((header, Snapshot::new(state)))
}

struct Input<'a> {
    path: &'a Path,
    file: BufReader<File>,
    frame: Vec<u8>,
}

impl Input<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), OpenError> {
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => OpenError::corrupt(self.path, "it ends too soon"),
            _ => OpenError::io("read", self.path)(error),
        })
    }

    /// Reads the next frame. Returns whether it is not the last.
    fn next(&mut self) -> Result<bool, OpenError> {
        let (mut length, mut sum) = ([0_u8; 4], [0_u8; 4]);
        self.fill(&mut length)?;
        self.fill(&mut sum)?;
        let size = u32::from_le_bytes(length) as usize;
        if size > FRAME_MAX {
            return Err(OpenError::corrupt(self.path, "the length of a block is wrong"));
        }
        let mut frame = std::mem::take(&mut self.frame);
        frame.resize(size, 0);
        self.fill(&mut frame)?;
        self.frame = frame;
        if crc(&[&length, &self.frame]) != u32::from_le_bytes(sum) {
            return Err(OpenError::corrupt(self.path, "the checksum of a block is wrong"));
        }
        Ok(size > 0)
    }
}

/// One allocation for each label name and value, however many objects carry it.
#[derive(Default)]
struct Names(HashSet<Arc<str>>);

impl Names {
    fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return Arc::clone(known);
        }
        let new: Arc<str> = name.into();
        self.0.insert(Arc::clone(&new));
        new
    }

    fn pairs(&mut self, pairs: &[(&str, &str)]) -> Vec<(Arc<str>, Arc<str>)> {
        pairs.iter().map(|(name, value)| (self.get(name), self.get(value))).collect()
    }
}

impl Stored<'_> {
    fn entry(&self, names: &mut Names) -> Entry {
        Entry {
            key: self.key.into(),
            revision: self.revision,
            created: self.created,
            bytes: Bytes::copy_from_slice(self.bytes),
            revision_at: self.revision_at,
            index: Index { labels: names.pairs(&self.index.labels), fields: names.pairs(&self.index.fields) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite::{body, draft, transaction};
    use crate::store::{Write as Change, bucket};

    fn sample(objects: u64) -> Snapshot {
        let mut state = State::default();
        let write = |number: u64| Change::Put {
            key: format!("a/b{}/n/{number:06}", number % 3).into(),
            draft: draft(&"x".repeat(number as usize % 3_000), &[("app", "web"), ("number", &number.to_string())]),
        };
        state.apply(&transaction(vec![], (0..objects).map(write).collect()), &mut Vec::new()).unwrap();
        state.ceiling = 70_000;
        Snapshot::new(state)
    }

    #[test]
    fn survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&path(dir.path())).unwrap().is_none());
        for objects in [0, 1, 1_000] {
            let snapshot = sample(objects);
            write(dir.path(), &snapshot, 5, vec![1, 2]).unwrap();
            let (header, found) = read(&path(dir.path())).unwrap().unwrap();
            assert_eq!(header, Header { revision: objects, ceiling: 70_000, time_ms: 5, objects, position: vec![1, 2] });
            assert_eq!(found.iter().collect::<Vec<_>>(), snapshot.iter().collect::<Vec<_>>());
            assert_eq!((found.revision(), found.bytes()), (snapshot.revision(), snapshot.bytes()));
            assert_eq!(found.by_label("a/b1/", "app", "web").count(), found.count("a/b1/"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        assert_eq!((bucket("a/b/c"), &*body("v", 1)), ("a/b", r#"{"metadata":{"resourceVersion":"1"},"value":"v"}"#));
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = path(dir.path());
        write(dir.path(), &sample(300), 5, vec![]).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(997) {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            let error = read(&path).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::Corrupt { .. }), "byte {at}: {error}");
            std::fs::write(&path, &good[..at]).unwrap();
            let error = read(&path).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::Corrupt { .. }), "cut at {at}: {error}");
        }
    }
}
