//! Which images this node pulled, and when each was last used: a file, so that a restarted agent still knows what it may remove.
//! An image that somebody else put there (`docker build`, `docker pull`) is not in it and is never touched.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::rt::files;

/// One pulled image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Pulled {
    pulled_at: Timestamp,
    used_at: Timestamp,
}

/// The images that this node pulled, by the name they were asked for.
#[derive(Debug, Default)]
pub struct Ledger {
    path: PathBuf,
    pulled: Mutex<BTreeMap<String, Pulled>>,
}

impl Ledger {
    /// Name of the file in the agent's folder.
    pub const FILE: &str = "images.json";

    /// Reads the file; one that is not there or does not parse is an empty one: then nothing is removed.
    pub fn open(path: PathBuf) -> Self {
        let known = std::fs::read(&path).ok().and_then(|bytes| match serde_json::from_slice(&bytes) {
            Ok(known) => Some(known),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the list of pulled images is unreadable: those images are kept");
                None
            }
        });
        Self { path, pulled: Mutex::new(known.unwrap_or_default()) }
    }

    /// Notes that an image was pulled.
    pub fn pulled(&self, image: &str, now: Timestamp) {
        self.change(|all| {
            all.insert(image.to_owned(), Pulled { pulled_at: now, used_at: now });
        });
    }

    /// Notes that images are used now; those that were not pulled here do not count.
    pub fn used(&self, images: impl Iterator<Item = String>, now: Timestamp) {
        let mut all = self.pulled.lock();
        for image in images {
            if let Some(pulled) = all.get_mut(&image) {
                pulled.used_at = now;
            }
        }
    }

    /// Notes that an image is gone.
    pub fn removed(&self, image: &str) {
        self.change(|all| {
            all.remove(image);
        });
    }

    /// The images that were pulled and last used before `before`, the longest unused first.
    pub fn unused_since(&self, before: Timestamp) -> Vec<String> {
        let all = self.pulled.lock();
        let mut unused: Vec<(&String, &Pulled)> = all.iter().filter(|(_, pulled)| pulled.used_at < before).collect();
        unused.sort_by_key(|(_, pulled)| (pulled.used_at, pulled.pulled_at));
        unused.into_iter().map(|(image, _)| image.clone()).collect()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Pulled>)) {
        let bytes = {
            let mut all = self.pulled.lock();
            change(&mut all);
            serde_json::to_vec(&*all)
        };
        let written = bytes.map_err(std::io::Error::other).and_then(|bytes| files::write(&self.path, &bytes, 0o644));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "the list of pulled images was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_comes_first_and_restarts_forget_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let second = |second| Timestamp::from_second(second).unwrap();
        let ledger = Ledger::open(folder.path().join("images.json"));
        for (image, at) in [("b", 20), ("a", 10), ("c", 30)] {
            ledger.pulled(image, second(at));
        }
        ledger.used(["a".to_owned(), "built-by-hand".to_owned()].into_iter(), second(40));
        ledger.removed("c");
        assert_eq!(ledger.unused_since(second(100)), ["b", "a"]);
        assert_eq!(ledger.unused_since(second(40)), ["b"]);
        let again = Ledger::open(folder.path().join("images.json"));
        assert_eq!(again.unused_since(second(100)), ["b", "a"]);
        std::fs::write(folder.path().join("images.json"), "{").unwrap();
        assert!(Ledger::open(folder.path().join("images.json")).unused_since(second(100)).is_empty());
    }
}
