//! The groups that an image's own `/etc/group` gives to a user. The engine gives them to a container whose user comes without a group
//! and leaves them out where both are given; Kubernetes' `supplementalGroupsPolicy: Merge` wants them in both cases.

use std::collections::HashMap;
use std::io::Read;

use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use futures_util::TryStreamExt;

use super::Engine;
use crate::cri::{ContainerSpec, RuntimeError};
use crate::rt::limits::RUNTIME_CALL;

/// Largest file of accounts that is read.
const FILE_BYTES: usize = 1 << 20;
/// Images that are remembered.
const IMAGES: usize = 256;

/// Texts of `/etc/passwd` and `/etc/group`; empty where an image has none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    passwd: String,
    group: String,
}

/// What is known of images, by their ids: files of an image never change.
pub(super) type KnownAccounts = HashMap<String, Accounts>;

impl Accounts {
    /// The groups that list a user, who is named or given by number.
    fn groups_of(&self, user: &str) -> Vec<String> {
        let field = |line: &str, at: usize| line.split(':').nth(at).unwrap_or("").trim().to_owned();
        let is_number = user.bytes().all(|byte| byte.is_ascii_digit());
        let name = if is_number {
            self.passwd.lines().find(|line| field(line, 2) == user).map(|line| field(line, 0))
        } else {
            Some(user.to_owned())
        };
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Vec::new() };
        let lists = |line: &&str| field(line, 3).split(',').any(|member| member.trim() == name);
        let numbers = self.group.lines().filter(lists).map(|line| field(line, 2));
        numbers.filter(|number| number.parse::<u32>().is_ok()).collect()
    }
}

impl Engine {
    /// The groups to add to a container beside those of its spec.
    pub(super) async fn image_groups(&self, spec: &ContainerSpec) -> Result<Vec<String>, RuntimeError> {
        let Some((user, _)) = spec.user.split_once(':').filter(|_| spec.merge_image_groups) else { return Ok(Vec::new()) };
        // The creation of the container says that its image is not there.
        let Some(image) = self.find_image(&spec.image).await? else { return Ok(Vec::new()) };
        let mut known = self.accounts.lock().await;
        if let Some(accounts) = known.get(&image.id) {
            return Ok(accounts.groups_of(user));
        }
        let accounts = self.read_accounts(&spec.image).await?;
        if known.len() >= IMAGES {
            known.clear();
        }
        let groups = accounts.groups_of(user);
        known.insert(image.id, accounts);
        Ok(groups)
    }

    /// Reads the files from a container that is never started.
    async fn read_accounts(&self, image: &str) -> Result<Accounts, RuntimeError> {
        let id = self.create_idle(image).await?;
        let read = async {
            let (passwd, group) = (self.read_file(&id, "/etc/passwd").await?, self.read_file(&id, "/etc/group").await?);
            Ok(Accounts { passwd, group })
        };
        let read = read.await;
        self.remove_by_id(&id).await?;
        read
    }

    /// A small text file of a container; "" when there is none.
    async fn read_file(&self, id: &str, path: &str) -> Result<String, RuntimeError> {
        let client = self.client()?;
        let options = DownloadFromContainerOptionsBuilder::new().path(path).build();
        let pieces = client.download_from_container(id, Some(options));
        let whole = pieces.try_fold(Vec::new(), |mut whole, piece| async move {
            if whole.len() < 2 * FILE_BYTES {
                whole.extend_from_slice(&piece);
            }
            Ok(whole)
        });
        match self.within("read a file of", RUNTIME_CALL, whole).await {
            Ok(archive) => Ok(first_file(&archive)),
            Err(RuntimeError::NotFound(_)) => Ok(String::new()),
            Err(error) => Err(error),
        }
    }
}

/// The text of the first file in an archive; links and what is no text count as nothing.
fn first_file(archive: &[u8]) -> String {
    let mut archive = tar::Archive::new(archive);
    let mut text = String::new();
    let first = archive.entries().ok().and_then(|mut entries| entries.next()).and_then(Result::ok);
    if let Some(entry) = first.filter(|entry| entry.header().entry_type().is_file())
        && let Err(error) = entry.take(FILE_BYTES as u64).read_to_string(&mut text)
    {
        tracing::debug!(%error, "a file of accounts is no text");
        text.clear();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_list_their_members() {
        let accounts = Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n".to_owned(),
            group: "root:x:0:\nalice:x:1000:\nwheel:x:10:root,alice\nvideo:x:44: alice\nbad:x:no:alice\n".to_owned(),
        };
        for (user, groups) in [("1000", &["10", "44"][..]), ("alice", &["10", "44"]), ("0", &["10"]), ("7", &[]), ("", &[])] {
            assert_eq!(accounts.groups_of(user), groups, "{user}");
        }
    }

    #[test]
    fn reads_the_first_file() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_cksum();
        builder.append_data(&mut header, "group", &b"abc"[..]).unwrap();
        assert_eq!(first_file(&builder.into_inner().unwrap()), "abc");
        assert_eq!(first_file(b"nonsense"), "");
    }
}
