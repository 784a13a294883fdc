//! Limits of what a pod keeps on the node's disk: `sizeLimit` of an `emptyDir`, limits of `ephemeral-storage` (upstream
//! `localStorageEviction`). Only pods that have such a limit are measured, and the longer that takes the more rarely.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::disk::{self, PodDisk};
use super::message;
use crate::agent::pod::resources::limit;
use crate::agent::pods::PodView;
use crate::api::quantity::Quantity;
use crate::kinds::core::pod::resources::of_containers;
use crate::rt::TaskGroup;
use crate::rt::clock::instant;

const STORAGE: &str = "ephemeral-storage";
/// A walk that took a millisecond is done again after a second at the earliest: a thousandth of a core at most.
const REST: u32 = 1_000;
const LEAST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(300);

/// What a pod may keep on the node's disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    pub empty_dirs: Vec<(String, Quantity)>,
    /// Of all containers that have one; it holds for their layers, their logs and the pod's volumes together.
    pub pod: Option<Quantity>,
    pub containers: Vec<(String, Quantity)>,
}

impl Limits {
    /// The limits of a pod.
    pub fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self::default() };
        let empty_dirs = spec.volumes.iter().flatten().filter_map(|volume| {
            let source = volume.empty_dir.as_ref().filter(|source| source.medium.as_deref().unwrap_or("").is_empty())?;
            let limit = source.size_limit.as_ref().and_then(|limit| Quantity::try_from(limit).ok())?;
            Some((volume.name.clone(), limit)).filter(|_| limit > Quantity::ZERO)
        });
        let own = spec.containers.iter().filter_map(|one| Some((one.name.clone(), limit(one, STORAGE)?)));
        Self { empty_dirs: empty_dirs.collect(), pod: of_containers(spec, |one| limit(one, STORAGE)), containers: own.collect() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.empty_dirs.is_empty() && self.pod.is_none()
    }

    /// What of it is exceeded: as metrics name it, and in words.
    pub fn exceeded(&self, disk: &PodDisk, has_image_file_system: bool) -> Option<(&'static str, String)> {
        let above = |bytes: u64, limit: &Quantity| i64::try_from(bytes).unwrap_or(i64::MAX) > limit.value();
        let used = |name: &str| disk.volumes.iter().find(|(known, _)| known == name).map_or(0, |(_, disk)| disk.bytes);
        if let Some((name, limit)) = self.empty_dirs.iter().find(|(name, limit)| above(used(name), limit)) {
            return Some(("emptydirfs.limit", message::empty_dir(name, *limit)));
        }
        if let Some(limit) = self.pod.filter(|limit| above(disk.total().bytes, limit)) {
            return Some(("ephemeralpodfs.limit", message::pod_storage(limit)));
        }
        let own = |name: &str| disk.container(name, !has_image_file_system).bytes;
        let container = self.containers.iter().find(|(name, limit)| above(own(name), limit));
        container.map(|(name, limit)| ("ephemeralcontainerfs.limit", message::container_storage(name, *limit)))
    }
}

/// A pod that keeps too much.
pub struct Exceeding {
    pub pod: Arc<Pod>,
    /// As metrics name it.
    pub limit: &'static str,
    pub why: String,
}

/// When each pod with limits was, and is to be, measured.
#[derive(Debug, Default)]
pub struct LocalStorage {
    next: HashMap<String, Instant>,
}

impl LocalStorage {
    /// Measures the pods whose turn it is; returns those that keep too much.
    pub async fn check(&mut self, views: &[Arc<PodView>], pods_dir: &Path, has_image_fs: bool) -> Vec<Exceeding> {
        let mut exceeding = Vec::new();
        for (uid, view, limits) in self.due(views) {
            let began = instant();
            let (seen, wanted, folder) = (Arc::clone(&view), limits.clone(), pods_dir.join(&uid));
            let measured = TaskGroup::blocking(move || measure(&seen, &wanted, &folder)).await;
            let rest = (began.elapsed() * REST).clamp(LEAST_REST, LONGEST_REST);
            match measured {
                Ok(disk) => {
                    let exceeded = limits.exceeded(&disk, has_image_fs);
                    exceeding.extend(exceeded.map(|(limit, why)| Exceeding { pod: Arc::clone(&view.pod), limit, why }));
                }
                Err(error) => tracing::debug!(uid, %error, "a pod's storage was not measured"),
            }
            self.next.insert(uid, instant() + rest);
        }
        exceeding
    }

    /// The pods with limits whose turn it is; those that are gone are forgotten.
    fn due(&mut self, views: &[Arc<PodView>]) -> Vec<(String, Arc<PodView>, Limits)> {
        let limited =
            views.iter().filter_map(|view| Some((view.pod.metadata.uid.clone()?, Arc::clone(view), Limits::of(&view.pod))));
        let mut limited: Vec<_> = limited.filter(|(_, _, limits)| !limits.is_empty()).collect();
        self.next.retain(|uid, _| limited.iter().any(|(known, ..)| known == uid));
        let now = instant();
        limited.retain(|(uid, ..)| self.next.get(uid).is_none_or(|next| *next <= now));
        limited
    }
}

/// As much as the limits need.
fn measure(view: &PodView, limits: &Limits, pod_dir: &Path) -> PodDisk {
    if limits.pod.is_some() {
        return disk::measure(view, pod_dir);
    }
    let volumes = limits.empty_dirs.iter().map(|(name, _)| (name.clone(), disk::empty_dir(pod_dir, name)));
    PodDisk { volumes: volumes.collect(), ..PodDisk::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::disk::Disk;
    use super::*;

    #[test]
    fn limits_and_what_exceeds_them() {
        let limited = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "a", "resources": limited("1Mi")}, {"name": "b", "resources": limited("2Mi")}, {"name": "c"}],
            "initContainers": [{"name": "i", "resources": limited("2Mi")}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "w", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}}))
        .unwrap();
        let limits = Limits::of(&pod);
        assert_eq!(limits.pod.unwrap().to_string(), "3Mi");
        let kib = |kib: u64| Disk { bytes: kib << 10, inodes: 1 };
        let disk = |a: u64, log: u64, v: u64, w: u64| PodDisk {
            layers: vec![("a".to_owned(), kib(a))],
            logs: vec![("a".to_owned(), kib(log))],
            volumes: vec![("v".to_owned(), kib(v)), ("w".to_owned(), kib(w))],
            own: Disk::default(),
        };
        let table = [
            (disk(500, 500, 1024, 0), false, None),
            (disk(0, 0, 1025, 0), false, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ")),
            (disk(0, 0, 0, 3073), false, Some("Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ")),
            (disk(1000, 25, 0, 0), false, Some("Container a exceeded its local ephemeral storage limit \"1Mi\". ")),
            (disk(1000, 25, 0, 0), true, None),
        ];
        for (disk, has_image_fs, expected) in table {
            assert_eq!(limits.exceeded(&disk, has_image_fs).as_ref().map(|(_, why)| why.as_str()), expected, "{disk:?}");
        }
        assert!(Limits::of(&serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}]}})).unwrap()).is_empty());
    }
}
