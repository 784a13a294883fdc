//! The cgroup of a pod, above those of its containers: its limits, and its removal (the engine makes it and leaves it behind).

use std::path::{Path, PathBuf};

use super::resources::{QosClass, cgroup_parent};
use crate::cri::{CgroupDriver, Resources};

const ROOT: &str = "/sys/fs/cgroup";

/// A pod's cgroup below the root of a hierarchy.
fn relative(class: QosClass, uid: &str, driver: CgroupDriver) -> PathBuf {
    let parent = cgroup_parent(class, uid, driver);
    match driver {
        CgroupDriver::Cgroupfs => PathBuf::from(parent.trim_start_matches('/')),
        CgroupDriver::Systemd => systemd_path(&parent),
    }
}

/// Whether the machine has the one hierarchy of cgroup v2.
pub fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// The directory of a pod's cgroup; `controller` says in which hierarchy of v1 ("" with v2).
pub fn directory(class: QosClass, uid: &str, driver: CgroupDriver, controller: &str) -> PathBuf {
    Path::new(ROOT).join(controller).join(relative(class, uid, driver))
}

/// The directories of a pod's cgroup: one with cgroup v2, one a controller with v1.
fn directories(class: QosClass, uid: &str, driver: CgroupDriver) -> Vec<PathBuf> {
    let relative = relative(class, uid, driver);
    let root = Path::new(ROOT);
    if is_unified() {
        return vec![root.join(relative)];
    }
    let Ok(controllers) = std::fs::read_dir(root) else { return Vec::new() };
    controllers.flatten().map(|controller| controller.path().join(&relative)).collect()
}

/// `a-b-c.slice` lies in `a.slice/a-b.slice`.
fn systemd_path(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

/// Sets the pod's own limits where its cgroup is there. A controller that the kernel lacks is passed over.
pub fn apply(class: QosClass, uid: &str, driver: CgroupDriver, resources: &Resources) {
    for directory in directories(class, uid, driver).iter().filter(|directory| directory.exists()) {
        let period = resources.cpu_period_us.unwrap_or(100_000);
        let quota = resources.cpu_quota_us;
        let memory = resources.memory_bytes;
        let max = |value: Option<i64>| value.map_or_else(|| "max".to_owned(), |value| value.to_string());
        let weight = resources.cpu_shares.map(|shares| (1 + (shares - 2) * 9_999 / 262_142).to_string());
        let settings = [
            ("cpu.shares", resources.cpu_shares.map(|shares| shares.to_string())),
            ("cpu.cfs_period_us", quota.map(|_| period.to_string())),
            ("cpu.cfs_quota_us", quota.map(|quota| quota.to_string())),
            ("memory.limit_in_bytes", memory.map(|bytes| bytes.to_string())),
            ("cpu.weight", weight),
            ("cpu.max", quota.map(|_| format!("{} {period}", max(quota)))),
            ("memory.max", memory.map(|_| max(memory))),
        ];
        for (file, value) in settings {
            let path = directory.join(file);
            let Some(value) = value.filter(|_| path.exists()) else { continue };
            if let Err(error) = std::fs::write(&path, value) {
                tracing::debug!(path = %path.display(), %error, "pod cgroup limit not set");
            }
        }
    }
}

/// Removes the pod's cgroup; what is not there is passed over. Returns whether nothing is left.
pub fn remove(class: QosClass, uid: &str, driver: CgroupDriver) -> bool {
    directories(class, uid, driver).iter().filter(|directory| directory.exists()).fold(true, |all, directory| {
        let children = std::fs::read_dir(directory).into_iter().flatten().flatten();
        for child in children.filter(|child| child.path().is_dir()) {
            if let Err(error) = std::fs::remove_dir(child.path()) {
                tracing::debug!(path = %child.path().display(), %error, "cgroup still in use");
            }
        }
        std::fs::remove_dir(directory).is_ok() && all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_their_name() {
        assert_eq!(
            systemd_path("kubepods-burstable-poda_b.slice"),
            PathBuf::from("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice")
        );
    }
}
