//! `emptyDir`: a directory that lives as long as its pod, on disk, in memory or in huge pages.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use super::{mounting, ownership};
use crate::api::quantity::Quantity;

/// Makes the directory, once; what the pod has written stays. `huge_pages` are the sizes of pages that the pod asks for (`2Mi`).
///
/// # Errors
/// As the file system has it, and a medium that there is not.
pub fn set_up(
    source: &EmptyDirVolumeSource,
    path: &Path,
    fs_group: Option<i64>,
    huge_pages: &BTreeSet<String>,
) -> io::Result<()> {
    let medium = source.medium.as_deref().unwrap_or("");
    let limit = source.size_limit.as_ref().and_then(|limit| Quantity::try_from(limit).ok());
    let limit = limit.map(|limit| limit.value()).filter(|bytes| *bytes > 0);
    match (medium, medium.strip_prefix("HugePages")) {
        ("", _) => {}
        ("Memory", _) => mounting::tmpfs(path, limit)?,
        (_, Some(size)) => {
            let page = page_size(medium, size.trim_start_matches('-'), huge_pages).map_err(io::Error::other)?;
            mounting::memory(path, "hugetlbfs", &format!("mode=0777,pagesize={page}"), limit)?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("medium {medium:?} is not supported"))),
    }
    let is_new = !path.exists() || fs::read_dir(path)?.next().is_none();
    fs::create_dir_all(path)?;
    if is_new {
        fs::set_permissions(path, Permissions::from_mode(0o777))?;
        ownership::give_to_group(path, fs_group, ownership::Access::ReadWrite)?;
    }
    Ok(())
}

/// The size of a medium's pages as the kernel writes it: `2M`. One that names none has that of the one kind that the pod asks for.
fn page_size(medium: &str, named: &str, asked: &BTreeSet<String>) -> Result<String, String> {
    let size = match (named, asked.first()) {
        ("", None) => return Err("hugePages storage requested, but there is no resource request for huge pages".to_owned()),
        ("", Some(size)) if asked.len() == 1 => size.as_str(),
        ("", Some(_)) => return Err(format!("medium {medium:?} can't be used if container requests multiple huge page sizes")),
        (named, _) if asked.contains(named) => named,
        (named, _) => {
            return Err(format!("medium {medium:?}: no container of the pod requests hugepages-{named}"));
        }
    };
    Ok(size.trim_end_matches('i').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_of_a_size_that_the_pod_asks_for() {
        let sizes = |sizes: &[&str]| sizes.iter().map(|size| (*size).to_owned()).collect();
        let found = |named: &str, asked: &[&str]| page_size("m", named, &sizes(asked)).ok();
        assert_eq!(found("", &["2Mi"]).as_deref(), Some("2M"));
        assert_eq!(found("1Gi", &["2Mi", "1Gi"]).as_deref(), Some("1G"));
        assert_eq!((found("", &[]), found("", &["2Mi", "1Gi"]), found("1Gi", &["2Mi"])), (None, None, None));
    }

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
}
