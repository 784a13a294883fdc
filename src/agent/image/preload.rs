//! Images that are loaded from tarballs in a folder (`DATA/agent/images`), at start and whenever one appears: for machines that
//! cannot pull. A file is loaded once for each of its contents; its size and time of change tell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::StreamExt;
use inotify::{Inotify, WatchMask};

use crate::cri::Runtime;

/// What tells a content from another.
type Version = (u64, SystemTime);

/// Loads what is in the folder and what comes into it; runs until it is dropped.
pub async fn run(runtime: Arc<dyn Runtime>, folder: PathBuf) {
    if let Err(error) = tokio::fs::create_dir_all(&folder).await {
        tracing::warn!(folder = %folder.display(), %error, "no images can be preloaded");
        return std::future::pending().await;
    }
    // Watched before the first look: what comes in between is seen twice rather than never.
    let watching = Inotify::init().and_then(|inotify| {
        inotify.watches().add(&folder, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO)?;
        inotify.into_event_stream([0_u8; 1024])
    });
    let mut loaded = BTreeMap::new();
    load_all(&*runtime, &folder, &mut loaded).await;
    let mut events = match watching {
        Ok(events) => events,
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "the folder of images is not watched");
            return std::future::pending().await;
        }
    };
    while events.next().await.is_some() {
        load_all(&*runtime, &folder, &mut loaded).await;
    }
}

async fn load_all(runtime: &dyn Runtime, folder: &Path, loaded: &mut BTreeMap<PathBuf, Version>) {
    for (path, version) in tarballs(folder) {
        if loaded.get(&path) == Some(&version) {
            continue;
        }
        match load(runtime, &path).await {
            Ok(images) => tracing::info!(file = %path.display(), images = images.join(", "), "loaded images"),
            Err(error) => tracing::warn!(file = %path.display(), error, "cannot load images"),
        }
        loaded.insert(path, version);
    }
}

/// The tarballs of a folder, by name.
fn tarballs(folder: &Path) -> BTreeMap<PathBuf, Version> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let tarball = |entry: std::fs::DirEntry| {
        let path = entry.path();
        let name = path.file_name()?.to_str()?;
        let is_tarball = [".tar", ".tar.gz", ".tgz"].iter().any(|end| name.ends_with(end));
        let metadata = entry.metadata().ok().filter(|metadata| metadata.is_file() && is_tarball)?;
        Some((path, (metadata.len(), metadata.modified().ok()?)))
    };
    entries.filter_map(tarball).collect()
}

/// Loads one tarball, compressed or not. Names what was loaded.
///
/// # Errors
/// What cannot be read, or the engine's words.
pub async fn load(runtime: &dyn Runtime, path: &Path) -> Result<Vec<String>, String> {
    let loaded = runtime.load(path).await.map_err(|error| error.to_string())?;
    if loaded.is_empty() { Err("it holds no image; `docker save` makes such files".to_owned()) } else { Ok(loaded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tarballs_count() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.tar", "b.tgz", "c.tar.gz", "d.txt", "tar"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        std::fs::create_dir(folder.path().join("e.tar")).unwrap();
        let found: Vec<String> =
            tarballs(folder.path()).keys().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(found, ["a.tar", "b.tgz", "c.tar.gz"]);
    }
}
