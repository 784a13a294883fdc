//! `emptyDir`: a directory that lives as long as its pod, on disk or in memory.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use super::{mounting, ownership};
use crate::api::quantity::Quantity;

const HUGE_PAGES: &str = "HugePages";

/// The sizes of huge pages (`2Mi`) that a pod's containers ask for.
pub fn huge_pages(pod: &Pod) -> BTreeSet<String> {
    let containers = pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let requests = containers.flat_map(|container| container.resources.iter().flat_map(|all| all.requests.iter().flatten()));
    requests.filter_map(|(name, _)| name.strip_prefix("hugepages-").map(str::to_owned)).collect()
}

/// The size that a medium names, or the only one of the pod (upstream `emptydir.getPageSizeMountOption`).
fn page_size<'a>(medium: &'a str, of_pod: &'a BTreeSet<String>) -> io::Result<&'a str> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
    match (medium.strip_prefix("HugePages-"), of_pod.first()) {
        (Some(named), _) if of_pod.contains(named) => Ok(named),
        (Some(named), _) => Err(wrong(format!("medium {medium:?}: no container asks for hugepages-{named}"))),
        (None, _) if medium != HUGE_PAGES => Err(wrong(format!("unknown storage medium {medium:?}"))),
        (None, Some(only)) if of_pod.len() == 1 => Ok(only),
        (None, _) => Err(wrong(format!("medium {medium:?} needs containers that ask for huge pages of one size"))),
    }
}

/// Makes the directory, once; what the pod has written stays.
///
/// # Errors
/// As the file system has it.
pub fn set_up(
    source: &EmptyDirVolumeSource,
    path: &Path,
    fs_group: Option<i64>,
    huge_pages: &BTreeSet<String>,
) -> io::Result<()> {
    match source.medium.as_deref().unwrap_or("") {
        "" => {}
        "Memory" => {
            let limit = source.size_limit.as_ref().and_then(|limit| Quantity::try_from(limit).ok());
            mounting::tmpfs(path, limit.map(|limit| limit.value()).filter(|bytes| *bytes > 0))?;
        }
        medium if medium.starts_with(HUGE_PAGES) => mounting::huge_pages(path, page_size(medium, huge_pages)?)?,
        other => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("unknown storage medium {other:?}"))),
    }
    let is_new = !path.exists() || fs::read_dir(path)?.next().is_none();
    fs::create_dir_all(path)?;
    if is_new {
        fs::set_permissions(path, Permissions::from_mode(0o777))?;
        ownership::give_to_group(path, fs_group, ownership::Access::ReadWrite)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_the_pod_wrote() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        set_up(&EmptyDirVolumeSource::default(), &path, Some(2_000), &BTreeSet::new()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o2777);
        fs::write(path.join("f"), "x").unwrap();
        set_up(&EmptyDirVolumeSource::default(), &path, Some(2_000), &BTreeSet::new()).unwrap();
        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "x");
    }
    #[test]
    fn huge_pages_are_those_of_the_pod() {
        let sizes = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        let (one, two) = (sizes(&["2Mi"]), sizes(&["1Gi", "2Mi"]));
        for (medium, of_pod, expected) in [
            ("HugePages", &one, Some("2Mi")),
            ("HugePages", &two, None),
            ("HugePages-1Gi", &two, Some("1Gi")),
            ("HugePages-1Gi", &one, None),
            ("HugePagesX", &one, None),
        ] {
            assert_eq!(page_size(medium, of_pod).ok(), expected, "{medium}");
        }
        let folder = tempfile::tempdir().unwrap();
        let source = EmptyDirVolumeSource { medium: Some("HugePages".to_owned()), size_limit: None };
        if set_up(&source, &folder.path().join("v"), None, &one).is_ok() {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let mounted = format!("{} ", folder.path().join("v").display());
            assert!(table.lines().any(|line| line.contains(&mounted) && line.contains("pagesize=2M")), "{table}");
            mounting::unmount_below(folder.path()).unwrap();
        }
    }
}
