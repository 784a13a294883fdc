//! `hostPath`: a path of the host, checked against its type.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

/// Checks the path (and makes it, if its type says so).
///
/// # Errors
/// That it is not what its type says, in the kubelet's words.
pub fn check(source: &HostPathVolumeSource) -> io::Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or("");
    match kind {
        // What is not there and of no type is a directory: so the container runtimes of Kubernetes make it.
        "" | "DirectoryOrCreate" if !path.exists() => {
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
        }
        "FileOrCreate" if !path.exists() => {
            OpenOptions::new().create(true).write(true).truncate(false).mode(0o644).open(&path)?;
        }
        _ => {}
    }
    let file_type = fs::metadata(&path).map(|meta| meta.file_type()).ok();
    let is = |fits: fn(&fs::FileType) -> bool| file_type.as_ref().is_some_and(fits);
    let (fits, what) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "a directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "a file"),
        "Socket" => (is(FileTypeExt::is_socket), "a socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "a character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "a block device"),
        other => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{other} is an invalid volume type"))),
    };
    if fits {
        return Ok(path);
    }
    Err(io::Error::other(format!("hostPath type check failed: {} is not {what}", source.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        fs::write(at("file"), "").unwrap();
        let table = [
            ("file", "File", true),
            ("file", "Directory", false),
            ("none", "", true),
            ("none", "File", false),
            ("new-dir", "DirectoryOrCreate", true),
            ("new-file", "FileOrCreate", true),
            ("file", "Socket", false),
            ("file", "Nonsense", false),
        ];
        for (name, kind, fits) in table {
            let source = HostPathVolumeSource { path: at(name), type_: Some(kind.to_owned()) };
            assert_eq!(check(&source).is_ok(), fits, "{name} as {kind}");
        }
    }
}
