//! What a node leaves on its machine, and how each part of it is taken away: for uninstalling. Nothing of others is touched: what is
//! removed carries this node's owner label, its name or its folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};

use crate::agent::pod::cgroup::remove_group;
use crate::agent::pod::stop::{CGROUP_LOOK, CGROUP_LOOKS};
use crate::agent::volume::iscsi::Iscsi;
use crate::agent::volume::mounting::{mounts_below, unmount};
use crate::cri::Runtime;
use crate::network::{NetworkConfig, PodNetwork, close_localhost};
use crate::rt::TaskGroup;

const CGROUPS: &str = "/sys/fs/cgroup";
/// How deep below a hierarchy the groups of pods lie.
const CGROUP_DEPTH: usize = 4;
/// How often the engine is asked for containers until it has none.
const CONTAINER_LOOKS: usize = 4;

/// What is known of a node that is to go.
pub struct Remains {
    /// `DATA/agent`.
    pub data_dir: PathBuf,
    /// Names this node's containers.
    pub runtime: Arc<dyn Runtime>,
    /// Absent when the node never had a range of addresses.
    pub network: Option<NetworkConfig>,
    pub tasks: TaskGroup,
}

/// Takes one sort of thing away; returns what it was, in words.
pub type Step = fn(&Remains) -> BoxFuture<'_, Result<Vec<String>, String>>;

/// Everything that a node makes outside of its own folder, in the order in which it goes.
pub const STEPS: &[(&str, Step)] = &[
    ("containers", containers),
    ("network", network),
    ("disks", disks),
    ("mounts", mounts),
    ("cgroups", cgroups),
    ("image", image),
];

fn containers(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    async move {
        let (mut gone, mut failed) = (Vec::new(), Vec::new());
        // Looked at again: an engine goes on with the creation that a node asked for before it was killed.
        for _ in 0..CONTAINER_LOOKS {
            let found = remains.runtime.list().await.map_err(|error| error.to_string())?;
            if found.is_empty() {
                return Ok(gone);
            }
            failed.clear();
            for container in found {
                match remains.runtime.remove(&container.id).await {
                    Ok(()) => gone.push(format!("container {}", container.id)),
                    Err(error) => failed.push(format!("container {}: {error}", container.id)),
                }
            }
        }
        if failed.is_empty() { Ok(gone) } else { Err(failed.join("; ")) }
    }
    .boxed()
}

fn network(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    async move {
        let Some(config) = remains.network.clone() else { return Ok(Vec::new()) };
        let what = format!("interfaces, routes and rules of node {}", config.node);
        let network = PodNetwork::start(config, &remains.tasks).await.map_err(|error| error.to_string())?;
        network.cleanup().await.map_err(|error| error.to_string())?;
        let closed = close_localhost(&remains.data_dir.join("network")).await;
        closed.map_err(|error| format!("switch off the way out for localhost: {error}"))?;
        Ok(vec![what])
    }
    .boxed()
}

/// Disks of targets, and the sessions for them.
fn disks(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    async move { Iscsi::new(&remains.data_dir).clean_up().await }.boxed()
}

fn mounts(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    let unmounted = mounts_below(&remains.data_dir).map_err(|error| error.to_string()).and_then(|points| {
        let each = |point: PathBuf| unmount(&point).map(|()| format!("mount {}", point.display()));
        all_or_failures(points.into_iter().map(|point| each(point).map_err(|error| error.to_string())))
    });
    std::future::ready(unmounted).boxed()
}

/// What was done, or, after all were tried, why some were not.
fn all_or_failures(tried: impl Iterator<Item = Result<String, String>>) -> Result<Vec<String>, String> {
    let (done, failed): (Vec<_>, Vec<_>) = tried.partition(Result::is_ok);
    let failed: Vec<String> = failed.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(done.into_iter().flatten().collect()) } else { Err(failed.join("; ")) }
}

fn cgroups(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    async move {
        let pods = std::fs::read_dir(remains.data_dir.join("pods")).into_iter().flatten().flatten();
        let uids: BTreeSet<String> = pods.filter_map(|pod| pod.file_name().into_string().ok()).collect();
        let (mut found, mut parents) = (Vec::new(), Vec::new());
        collect_cgroups(Path::new(CGROUPS), &uids, 0, &mut found, &mut parents);
        // The processes of containers that were just removed leave their groups a moment later, of which nobody tells.
        let mut left = found.clone();
        for look in 0..CGROUP_LOOKS {
            left.retain(|group| !remove_group(group));
            if left.is_empty() || look + 1 == CGROUP_LOOKS {
                break;
            }
            tokio::time::sleep(CGROUP_LOOK).await;
        }
        if !left.is_empty() {
            return Err(left
                .iter()
                .map(|group| format!("cgroup {} is still in use", group.display()))
                .collect::<Vec<_>>()
                .join("; "));
        }
        // Those of other nodes on this machine are not empty, and stay.
        parents.retain(|parent| std::fs::remove_dir(parent).is_ok());
        Ok(found.into_iter().chain(parents).map(|path| format!("cgroup {}", path.display())).collect())
    }
    .boxed()
}

/// Finds the groups of these pods; `parents` gets the `kubepods` groups that they were in, the innermost first.
fn collect_cgroups(folder: &Path, uids: &BTreeSet<String>, depth: usize, found: &mut Vec<PathBuf>, parents: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_inside = folder.components().any(|part| part.as_os_str().to_string_lossy().starts_with("kubepods"));
        let uid = name.rsplit_once("pod").map(|(_, uid)| uid.trim_end_matches(".slice").replace('_', "-"));
        if is_inside && uid.is_some_and(|uid| uids.contains(&uid)) {
            found.push(path);
        } else if depth < CGROUP_DEPTH && (depth == 0 || is_inside || name.starts_with("kubepods")) {
            collect_cgroups(&path, uids, depth + 1, found, parents);
            if name.starts_with("kubepods") || (is_inside && ["besteffort", "burstable"].contains(&name.as_str())) {
                parents.push(path);
            }
        }
    }
}

/// The pause image; the engine refuses where another node's sandboxes still use it.
fn image(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    const PAUSE: &str = "orch/pause:1";
    async move {
        match remains.runtime.remove_image(PAUSE).await {
            Ok(()) => Ok(vec![format!("image {PAUSE}")]),
            Err(error) => {
                tracing::debug!(%error, "the pause image stays");
                Ok(Vec::new())
            }
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_these_pods_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        make("cpu/kubepods/besteffort/poda-b/container");
        make("cpu/kubepods/podc-d");
        make("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice");
        make("other/poda-b");
        let (mut found, mut parents) = (Vec::new(), Vec::new());
        let uids = BTreeSet::from(["a-b".to_owned()]);
        collect_cgroups(root.path(), &uids, 0, &mut found, &mut parents);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|group| remove_group(group)));
        parents.retain(|parent| std::fs::remove_dir(parent).is_ok());
        assert!(root.path().join("cpu/kubepods/podc-d").exists() && root.path().join("other/poda-b").exists());
        assert!(!root.path().join("kubepods.slice").exists(), "{parents:?}");
    }
}
