//! The cgroups above those of containers, a pod's and those of all pods of a class: their limits, and the removal of a pod's (the
//! engine makes them and leaves them behind).

use std::path::{Path, PathBuf};

use super::resources::{QosClass, cgroup_parent, class_group};
use crate::cri::{CgroupDriver, Resources};

const ROOT: &str = "/sys/fs/cgroup";
/// The file that only the root of cgroup v2 has.
const UNIFIED: &str = "cgroup.controllers";

/// A cgroup below the root of a hierarchy.
fn relative(group: &str, driver: CgroupDriver) -> PathBuf {
    match driver {
        CgroupDriver::Cgroupfs => PathBuf::from(group.trim_start_matches('/')),
        CgroupDriver::Systemd => systemd_path(group),
    }
}

/// Whether the machine has the one hierarchy of cgroup v2.
pub fn is_unified() -> bool {
    Path::new(ROOT).join(UNIFIED).exists()
}

/// A pod's cgroup below the root of a hierarchy.
pub fn of_pod(class: QosClass, uid: &str, driver: CgroupDriver) -> PathBuf {
    relative(&cgroup_parent(class, uid, driver), driver)
}

/// The directory of a pod's cgroup; `controller` says in which hierarchy of v1 ("" with v2).
pub fn directory(class: QosClass, uid: &str, driver: CgroupDriver, controller: &str) -> PathBuf {
    Path::new(ROOT).join(controller).join(of_pod(class, uid, driver))
}

/// The directories of a cgroup: one with cgroup v2, one a controller with v1.
fn directories(group: &str, driver: CgroupDriver) -> Vec<PathBuf> {
    directories_below(Path::new(ROOT), &relative(group, driver))
}

fn directories_below(root: &Path, relative: &Path) -> Vec<PathBuf> {
    if root.join(UNIFIED).exists() {
        return vec![root.join(relative)];
    }
    let Ok(controllers) = std::fs::read_dir(root) else { return Vec::new() };
    controllers.flatten().map(|controller| controller.path().join(relative)).collect()
}

/// `a-b-c.slice` lies in `a.slice/a-b.slice`.
fn systemd_path(slice: &str) -> PathBuf {
    let name = slice.trim_end_matches(".slice");
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

/// Sets the pod's own limits where its cgroup is there. A controller that the kernel lacks is passed over.
pub fn apply(class: QosClass, uid: &str, driver: CgroupDriver, resources: &Resources) {
    apply_to(&cgroup_parent(class, uid, driver), driver, resources);
}

/// Sets the limits of all pods of a class together.
pub fn apply_to_class(class: QosClass, driver: CgroupDriver, resources: &Resources) {
    apply_to(&class_group(class, driver), driver, resources);
}

fn apply_to(group: &str, driver: CgroupDriver, resources: &Resources) {
    directories(group, driver).iter().filter(|directory| directory.exists()).for_each(|directory| limit(directory, resources));
}

/// Sets what the engine has no option for (cgroup v2), as the kubelet asks its runtime to: a container that takes too much memory is
/// killed as a whole, since a shell whose child was killed would go on as if nothing had been; and none is swapped out.
pub fn settle(class: QosClass, uid: &str, driver: CgroupDriver, container_id: &str) {
    if !is_unified() {
        return;
    }
    let folder = directory(class, uid, driver, "").join(container_directory(driver, container_id));
    for (file, value) in [("memory.oom.group", "1"), ("memory.swap.max", "0")] {
        if let Err(error) = std::fs::write(folder.join(file), value) {
            tracing::debug!(path = %folder.display(), file, %error, "not set in a container's cgroup");
        }
    }
}

/// A container's cgroup in that of its pod.
pub fn container_directory(driver: CgroupDriver, id: &str) -> String {
    match driver {
        CgroupDriver::Cgroupfs => id.to_owned(),
        CgroupDriver::Systemd => format!("docker-{id}.scope"),
    }
}

/// Writes limits into those files of either version that a directory has.
fn limit(directory: &Path, resources: &Resources) {
    let period = resources.cpu_period_us.unwrap_or(100_000);
    let quota = resources.cpu_quota_us;
    let memory = resources.memory_bytes.map(|bytes| bytes.to_string());
    let weight = resources.cpu_shares.map(|shares| (1 + (shares - 2) * 9_999 / 262_142).to_string());
    let settings = [
        ("cpu.shares", resources.cpu_shares.map(|shares| shares.to_string())),
        ("cpu.cfs_period_us", quota.map(|_| period.to_string())),
        ("cpu.cfs_quota_us", quota.map(|quota| quota.to_string())),
        ("memory.limit_in_bytes", memory.clone()),
        ("cpu.weight", weight),
        ("cpu.max", quota.map(|quota| format!("{quota} {period}"))),
        ("memory.max", memory),
        ("pids.max", resources.pids.map(|pids| pids.to_string())),
    ];
    let huge = resources.huge_pages.iter().flat_map(|(name, bytes)| {
        // `hugepages-2Mi` is the kernel's `hugetlb.2MB`.
        let size = name.trim_start_matches("hugepages-").replace('i', "B");
        let file = |end: &str| (format!("hugetlb.{size}.{end}"), Some(bytes.to_string()));
        [file("limit_in_bytes"), file("max")]
    });
    let settings = settings.into_iter().map(|(file, value)| (file.to_owned(), value));
    for (file, value) in settings.chain(huge) {
        let path = directory.join(file);
        let Some(value) = value else { continue };
        match std::fs::read_to_string(&path) {
            Ok(now) if now.trim() != value => {}
            _ => continue,
        }
        if let Err(error) = std::fs::write(&path, value) {
            tracing::debug!(path = %path.display(), %error, "limit of a cgroup not set");
        }
    }
}

/// Removes the pod's cgroup, of whatever class the pod was; what is not there is passed over. Returns whether nothing is left.
pub fn remove(uid: &str, driver: CgroupDriver) -> bool {
    let all = QosClass::ALL.iter().flat_map(|class| directories(&cgroup_parent(*class, uid, driver), driver));
    // All are tried, also after one that stays.
    all.filter(|directory| directory.exists() && !remove_group(directory)).count() == 0
}

/// Removes a cgroup and those directly in it; returns whether it is gone. One in which something still runs stays.
pub fn remove_group(directory: &Path) -> bool {
    let children = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for child in children.filter(|child| child.path().is_dir()) {
        if let Err(error) = std::fs::remove_dir(child.path()) {
            tracing::debug!(path = %child.path().display(), %error, "cgroup still in use");
        }
    }
    std::fs::remove_dir(directory).is_ok()
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

    /// Makes a directory with these files, limits it, and reads them.
    fn limited(files: &[&str], resources: &Resources) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|file| std::fs::write(folder.path().join(file), "").unwrap());
        limit(folder.path(), resources);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), files.len(), "no file is made");
        files.iter().map(|file| std::fs::read_to_string(folder.path().join(file)).unwrap()).collect()
    }

    #[test]
    fn each_version_has_its_own_files() {
        let resources = Resources {
            cpu_shares: Some(1_024),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(1 << 20),
            pids: Some(100),
            huge_pages: vec![("hugepages-2Mi".to_owned(), 4 << 20)],
            ..Resources::default()
        };
        let unified = ["cpu.weight", "cpu.max", "memory.max", "pids.max", "hugetlb.2MB.max"];
        assert_eq!(limited(&unified, &resources), ["39", "50000 100000", "1048576", "100", "4194304"]);
        let legacy =
            ["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes", "hugetlb.2MB.limit_in_bytes"];
        assert_eq!(limited(&legacy, &resources), ["1024", "100000", "50000", "1048576", "4194304"]);
        assert_eq!(limited(&unified, &Resources::default()), [""; 5], "what has no limit stays as it is");
    }

    #[test]
    fn one_directory_or_one_a_controller() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| std::fs::create_dir_all(root.path().join(path)).unwrap();
        ["cpu", "memory"].into_iter().for_each(make);
        let relative = relative(&cgroup_parent(QosClass::Burstable, "a-b", CgroupDriver::Cgroupfs), CgroupDriver::Cgroupfs);
        let mut found = directories_below(root.path(), &relative);
        found.sort();
        assert_eq!(found, ["cpu", "memory"].map(|name| root.path().join(name).join("kubepods/burstable/poda-b")));
        std::fs::write(root.path().join(UNIFIED), "cpu memory").unwrap();
        assert_eq!(directories_below(root.path(), &relative), [root.path().join("kubepods/burstable/poda-b")]);
    }
}
