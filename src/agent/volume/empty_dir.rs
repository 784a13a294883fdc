//! `emptyDir`: a directory that lives as long as its pod, on disk or in memory.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use super::{mounting, ownership};
use crate::api::quantity::Quantity;

/// Makes the directory, once; what the pod has written stays.
///
/// # Errors
/// As the file system has it.
pub fn set_up(source: &EmptyDirVolumeSource, path: &Path, fs_group: Option<i64>) -> io::Result<()> {
    match source.medium.as_deref().unwrap_or("") {
        "" => {}
        "Memory" => {
            let limit = source.size_limit.as_ref().and_then(|limit| Quantity::try_from(limit).ok());
            mounting::tmpfs(path, limit.map(|limit| limit.value()).filter(|bytes| *bytes > 0))?;
        }
        other => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("medium {other:?} is not supported"))),
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
        set_up(&EmptyDirVolumeSource::default(), &path, Some(2_000)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o2777);
        fs::write(path.join("f"), "x").unwrap();
        set_up(&EmptyDirVolumeSource::default(), &path, Some(2_000)).unwrap();
        assert_eq!(fs::read_to_string(path.join("f")).unwrap(), "x");
    }
}
