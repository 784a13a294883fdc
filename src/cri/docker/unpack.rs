//! The files of an image as a directory: for image volumes, on engines that cannot mount images (all before Docker 28). A container is
//! created from the image, never started, exported, and removed again.

use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use bollard::models::ContainerCreateBody;
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::Engine;
use crate::cri::{RuntimeError, labels};
use crate::rt::{TaskGroup, random};

/// An export may take as long as it needs, but not be silent for longer than this.
const SILENCE: Duration = Duration::from_secs(120);
/// Pieces of the export that wait to be written.
const PIECES: usize = 16;
/// What the engine adds to every container, whatever its image.
const ADDED: [&str; 6] = [".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"];
const ADDED_DIRECTORIES: [&str; 6] = ["dev/pts", "dev/shm", "dev", "etc", "proc", "sys"];

/// The export as the archive's reader wants it.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl Engine {
    /// Writes the files of an image into an empty directory.
    pub(super) async fn unpack(&self, image: &str, target: &Path) -> Result<(), RuntimeError> {
        let id = self.create_idle(image).await?;
        let unpacked = self.export(&id, target).await;
        self.remove_by_id(&id).await?;
        unpacked
    }

    /// A container of an image that is never started: to read the image's files from. Who asks for it removes it.
    pub(super) async fn create_idle(&self, image: &str) -> Result<String, RuntimeError> {
        let name = format!("orch_image_{}", random::suffix(10));
        let owned = [(labels::OWNER.to_owned(), self.owner.clone()), (labels::TYPE.to_owned(), "image-volume".to_owned())];
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // It never runs, but the engine wants to know what it would run.
            cmd: Some(vec!["/".to_owned()]),
            labels: Some(owned.clone().into()),
            network_disabled: Some(true),
            ..ContainerCreateBody::default()
        };
        self.create_named(&name, &owned.into(), body).await
    }

    async fn export(&self, id: &str, target: &Path) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let target = target.to_owned();
        let write = TaskGroup::blocking(move || write(Pieces { pieces, current: Bytes::new() }, &target));
        let mut export = std::pin::pin!(client.export_container(id));
        let send = async move {
            loop {
                let piece = tokio::time::timeout(SILENCE, export.next()).await;
                let piece = piece.map_err(|_| RuntimeError::Timeout { call: "export", after: SILENCE })?;
                match piece {
                    None => return Ok(()),
                    Some(Ok(piece)) => {
                        // A writer that ended says itself why.
                        if sender.send(piece).await.is_err() {
                            return Ok(());
                        }
                    }
                    Some(Err(error)) => return Err(self.explain(error)),
                }
            }
        };
        let (sent, written) = tokio::join!(send, write);
        sent?;
        let failed = |why: String| RuntimeError::Failed(format!("unpacking the image: {why}"));
        written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

fn write(pieces: Pieces, target: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(pieces);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let is_added = ADDED.iter().any(|added| path.as_path() == Path::new(added)) && entry.size() == 0;
        let is_device = entry.header().entry_type().is_block_special() || entry.header().entry_type().is_character_special();
        if !is_added && !is_device {
            // Nothing is written outside of the target, whatever the archive says.
            entry.unpack_in(target)?;
        }
    }
    for directory in ADDED_DIRECTORIES {
        // One that the image has files in stays.
        match std::fs::remove_dir(target.join(directory)) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}
