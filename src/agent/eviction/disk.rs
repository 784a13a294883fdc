//! What a pod keeps on the node's disk: the writable layers of its containers, their logs, and its volumes. A tree is walked as `du`
//! does; nobody is asked who would do the same walk slower.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::agent::pods::{ContainerInstance, PodView};
use crate::cri::State;

/// The unit of a file's `blocks`, whatever the file system's own block is.
const BLOCK_BYTES: u64 = 512;

/// Space and inodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    pub bytes: u64,
    pub inodes: u64,
}

impl Disk {
    fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// What a pod keeps on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodDisk {
    /// By container: its writable layer and its logs.
    pub layers: Vec<(String, Disk)>,
    pub logs: Vec<(String, Disk)>,
    /// By volume: those that live on the node's disk, and only as long as the pod.
    pub volumes: Vec<(String, Disk)>,
    /// Files that the node made for the pod.
    pub own: Disk,
}

impl PodDisk {
    /// Layer and logs of a container.
    pub fn container(&self, name: &str, with_layer: bool) -> Disk {
        let mut sum = Disk::default();
        let layers = self.layers.iter().filter(|_| with_layer);
        layers.chain(&self.logs).filter(|(known, _)| known == name).for_each(|(_, disk)| sum.add(*disk));
        sum
    }

    /// Everything.
    pub fn total(&self) -> Disk {
        self.sum(true, true)
    }

    /// The layers of the engine's file system, or what lies on that of the node, or both.
    pub fn sum(&self, layers: bool, rest: bool) -> Disk {
        let mut sum = Disk::default();
        if rest {
            sum.add(self.own);
        }
        let layers = self.layers.iter().filter(|_| layers);
        let rest = self.logs.iter().chain(&self.volumes).filter(|_| rest);
        layers.chain(rest).for_each(|(_, disk)| sum.add(*disk));
        sum
    }
}

/// Measures a pod. Blocking; takes as long as its trees are large.
pub fn measure(view: &PodView, pod_dir: &Path) -> PodDisk {
    let mut disk = PodDisk { own: etc(pod_dir), ..PodDisk::default() };
    for lookup in view.containers.values() {
        let Some(instance) = &lookup.current else { continue };
        if let Some(layer) = layer(instance) {
            disk.layers.push((lookup.container.clone(), tree(&layer)));
        }
        let logs = [Some(instance), lookup.previous.as_ref()].into_iter().flatten().map(logs);
        let mut sum = Disk::default();
        logs.for_each(|logs| sum.add(logs));
        disk.logs.push((lookup.container.clone(), sum));
    }
    let volumes = local_volumes(&view.pod).map(|(volume, plugin)| {
        let path = pod_dir.join("volumes").join(plugin).join(&volume.name);
        (volume.name.clone(), tree(&path))
    });
    disk.volumes = volumes.collect();
    disk
}

/// Measures one `emptyDir`.
pub fn empty_dir(pod_dir: &Path, volume: &str) -> Disk {
    tree(&pod_dir.join("volumes").join(EMPTY_DIR).join(volume))
}

const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// The volumes that use the node's disk and go with the pod, each with the folder of its sort.
fn local_volumes(pod: &Pod) -> impl Iterator<Item = (&Volume, &'static str)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let is_on_disk = volume.empty_dir.as_ref().is_some_and(|source| source.medium.as_deref().unwrap_or("").is_empty());
        match (is_on_disk, &volume.config_map) {
            (true, _) => Some((volume, EMPTY_DIR)),
            (false, Some(_)) => Some((volume, "kubernetes.io~configmap")),
            (false, None) => None,
        }
    })
}

/// Files beside the pod's volumes: hosts, termination messages.
fn etc(pod_dir: &Path) -> Disk {
    let mut sum = Disk::default();
    for entry in fs::read_dir(pod_dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name == "volumes" || name == "volume-subpaths" {
            continue;
        }
        sum.add(tree(&entry.path()));
    }
    sum
}

/// The log of an instance and those that it was rotated to.
fn logs(instance: &ContainerInstance) -> Disk {
    let mut sum = Disk::default();
    let Some(path) = &instance.log_path else { return sum };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else { return sum };
    let is_log = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|other| other.starts_with(name));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().filter(is_log) {
        if let Ok(file) = entry.metadata() {
            sum.add(Disk { bytes: file.blocks() * BLOCK_BYTES, inodes: 1 });
        }
    }
    sum
}

/// The writable layer of a running container, as the kernel has it mounted: so it is with every storage driver that overlays.
fn layer(instance: &ContainerInstance) -> Option<PathBuf> {
    let pid = instance.pid.filter(|_| instance.state == State::Running)?;
    let process = Path::new("/proc").join(pid.to_string());
    // The process may have ended, and another one have got its number.
    let is_same = fs::read_to_string(process.join("cgroup")).is_ok_and(|cgroups| cgroups.contains(&instance.id));
    let mounts = fs::read_to_string(process.join("mountinfo")).ok().filter(|_| is_same)?;
    upper_dir(&mounts)
}

/// The upper directory of the mount at `/`, from a `mountinfo`.
fn upper_dir(mounts: &str) -> Option<PathBuf> {
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"))?;
    let (_, options) = root.rsplit_once(' ')?;
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    Some(PathBuf::from(upper.replace("\\040", " ").replace("\\054", ",")))
}

/// Everything below a path, on its own file system; what has several names counts once.
pub fn tree(root: &Path) -> Disk {
    let Ok(top) = fs::symlink_metadata(root) else { return Disk::default() };
    let mut sum = Disk::default();
    let mut seen = HashSet::new();
    let mut folders = Vec::new();
    let mut count = |file: &fs::Metadata| {
        if file.nlink() <= 1 || file.is_dir() || seen.insert(file.ino()) {
            sum.add(Disk { bytes: file.blocks() * BLOCK_BYTES, inodes: 1 });
        }
    };
    count(&top);
    if top.is_dir() {
        folders.push(root.to_owned());
    }
    while let Some(folder) = folders.pop() {
        // What vanishes while it is looked at does not count any more.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(file) = entry.metadata() else { continue };
            if file.dev() != top.dev() {
                continue;
            }
            count(&file);
            if file.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_measured_as_du_does() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/file"), vec![1_u8; 64 << 10]).unwrap();
        fs::hard_link(folder.path().join("a/file"), folder.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("a/away")).unwrap();
        let output = std::process::Command::new("du").args(["-sx", "--block-size=1"]).arg(folder.path()).output().unwrap();
        let du: u64 = String::from_utf8(output.stdout).unwrap().split('\t').next().unwrap().parse().unwrap();
        assert_eq!(tree(folder.path()), Disk { bytes: du, inodes: 4 });
        assert_eq!(tree(Path::new("/nowhere/at/all")), Disk::default());
    }

    #[test]
    fn layers_are_found_among_the_mounts() {
        let mounts = "10 9 0:30 / /proc rw - proc proc rw\n\
            12 9 0:50 / / rw,relatime - overlay overlay rw,lowerdir=/d/l/A:/d/l/B,upperdir=/d/x\\040y/diff,workdir=/d/work\n";
        assert_eq!(upper_dir(mounts), Some(PathBuf::from("/d/x y/diff")));
        assert_eq!(upper_dir("12 9 0:50 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn sums_are_of_what_is_asked_for() {
        let disk = |bytes| Disk { bytes, inodes: 1 };
        let pod = PodDisk {
            layers: vec![("a".to_owned(), disk(1)), ("b".to_owned(), disk(2))],
            logs: vec![("a".to_owned(), disk(10))],
            volumes: vec![("v".to_owned(), disk(100))],
            own: disk(1_000),
        };
        assert_eq!((pod.total().bytes, pod.sum(true, false).bytes, pod.sum(false, true).bytes), (1_113, 3, 1_110));
        assert_eq!((pod.container("a", true).bytes, pod.container("a", false).bytes), (11, 10));
    }
}
