//! What a node leaves on its machine, and how each part of it is taken away: for uninstalling. Nothing of others is touched: what is
//! removed carries this node's owner label, its name or its folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use nix::mount::{MntFlags, umount2};

use crate::agent::pod::cgroup::remove_group;
use crate::cri::Runtime;
use crate::network::{NetworkConfig, PodNetwork, close_localhost};
use crate::rt::TaskGroup;

const CGROUPS: &str = "/sys/fs/cgroup";
/// How deep below a hierarchy the groups of pods lie.
const CGROUP_DEPTH: usize = 4;

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
pub const STEPS: &[(&str, Step)] =
    &[("containers", containers), ("network", network), ("mounts", mounts), ("cgroups", cgroups), ("image", image)];

fn containers(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    async move {
        let mut gone = Vec::new();
        for container in remains.runtime.list().await.map_err(|error| error.to_string())? {
            remains.runtime.remove(&container.id).await.map_err(|error| error.to_string())?;
            gone.push(format!("container {}", container.id));
        }
        Ok(gone)
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

fn mounts(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    let unmounted = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| error.to_string())
        .and_then(|table| unmount(&mount_points(&table, &remains.data_dir)));
    std::future::ready(unmounted).boxed()
}

/// The mount points below a folder, the innermost first.
fn mount_points(table: &str, folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .filter(|path| path.starts_with(folder))
        .collect();
    found.reverse();
    found
}

fn unmount(points: &[PathBuf]) -> Result<Vec<String>, String> {
    let each = |point: &PathBuf| {
        let done = umount2(point.as_path(), MntFlags::MNT_DETACH);
        done.map(|()| format!("mount {}", point.display())).map_err(|error| format!("umount {}: {error}", point.display()))
    };
    points.iter().map(each).collect()
}

fn cgroups(remains: &Remains) -> BoxFuture<'_, Result<Vec<String>, String>> {
    let pods = std::fs::read_dir(remains.data_dir.join("pods")).into_iter().flatten().flatten();
    let uids: BTreeSet<String> = pods.filter_map(|pod| pod.file_name().into_string().ok()).collect();
    let mut gone = Vec::new();
    let mut parents = Vec::new();
    collect_cgroups(Path::new(CGROUPS), &uids, 0, &mut gone, &mut parents);
    // Those of other nodes on this machine are not empty, and stay.
    parents.retain(|parent| std::fs::remove_dir(parent).is_ok());
    gone.extend(parents);
    std::future::ready(Ok(gone.into_iter().map(|path| format!("cgroup {}", path.display())).collect())).boxed()
}

/// Removes the groups of these pods; `parents` gets the `kubepods` groups that they were in, the innermost first.
fn collect_cgroups(folder: &Path, uids: &BTreeSet<String>, depth: usize, gone: &mut Vec<PathBuf>, parents: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let is_inside = folder.components().any(|part| part.as_os_str().to_string_lossy().starts_with("kubepods"));
        let uid = name.rsplit_once("pod").map(|(_, uid)| uid.trim_end_matches(".slice").replace('_', "-"));
        if is_inside && uid.is_some_and(|uid| uids.contains(&uid)) {
            if remove_group(&path) {
                gone.push(path);
            }
        } else if depth < CGROUP_DEPTH && (depth == 0 || is_inside || name.starts_with("kubepods")) {
            collect_cgroups(&path, uids, depth + 1, gone, parents);
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
    fn mounts_go_from_the_inside_out() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:1 / /d/agent/pods/u/v rw - tmpfs t rw\n3 2 0:1 / /d/agent/pods/u/v/a\\040b rw - tmpfs t rw\n4 1 0:1 / /d/agents rw - tmpfs t rw\n";
        let found = mount_points(table, Path::new("/d/agent"));
        assert_eq!(found, [PathBuf::from("/d/agent/pods/u/v/a b"), PathBuf::from("/d/agent/pods/u/v")]);
    }

    #[test]
    fn cgroups_of_these_pods_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        make("cpu/kubepods/besteffort/poda-b/container");
        make("cpu/kubepods/podc-d");
        make("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice");
        make("other/poda-b");
        let (mut gone, mut parents) = (Vec::new(), Vec::new());
        let uids = BTreeSet::from(["a-b".to_owned()]);
        collect_cgroups(root.path(), &uids, 0, &mut gone, &mut parents);
        assert_eq!(gone.len(), 2, "{gone:?}");
        parents.retain(|parent| std::fs::remove_dir(parent).is_ok());
        assert!(root.path().join("cpu/kubepods/podc-d").exists() && root.path().join("other/poda-b").exists());
        assert!(!root.path().join("kubepods.slice").exists(), "{parents:?}");
    }
}
