//! File systems on block devices: made where there is none, checked, and mounted; as upstream's `SafeFormatAndMount`.

use std::path::Path;
use std::time::Duration;

use super::{blocking, mounting, tool};

/// A check may repair a large file system.
const CHECK: Duration = Duration::from_secs(600);
const MAKE: Duration = Duration::from_secs(600);

/// How a device is to be mounted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `ext4`, `xfs`, …; "" is ext4.
    pub kind: &'a str,
    pub options: &'a [String],
    pub read_only: bool,
}

/// Mounts a device's file system, unless it is mounted there; a blank device gets one. Idempotent.
///
/// # Errors
/// In upstream's words. What is on the device is never replaced.
pub async fn format_and_mount(device: &Path, target: &Path, wanted: Wanted<'_>) -> Result<(), String> {
    let at = target.to_owned();
    let is_mounted = blocking(move || {
        std::fs::create_dir_all(&at)?;
        mounting::is_mounted(&at)
    });
    if is_mounted.await? {
        return Ok(());
    }
    let kind = if wanted.kind.is_empty() { "ext4" } else { wanted.kind };
    let present = present(device).await?;
    let name = device.display();
    match &present {
        None if wanted.read_only => {
            return Err(format!("cannot mount unformatted disk {name} as we are manipulating it in read-only mode"));
        }
        None => make(device, kind).await?,
        Some(_) if wanted.read_only => {}
        Some(_) => check(device).await?,
    }
    let mut options = wanted.options.to_vec();
    options.extend(wanted.read_only.then(|| "ro".to_owned()));
    options.push("defaults".to_owned());
    let mounted = tool::mount(kind, &options, &name.to_string(), target).await;
    mounted.map_err(|why| match present {
        Some(other) if other != kind => {
            format!("failed to mount the volume as {kind:?}, it already contains {other}. Mount error: {why}")
        }
        _ => why,
    })
}

/// What is on a device: the kind of its file system, or that it has partitions; `None` when it is blank.
async fn present(device: &Path) -> Result<Option<String>, String> {
    /// `blkid` has found nothing.
    const NOTHING: i32 = 2;
    let arguments = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"].map(std::ffi::OsStr::new);
    let all: Vec<_> = arguments.into_iter().chain([device.as_os_str()]).collect();
    let ran = tool::end_of("blkid", &all, CHECK).await?;
    if ran.status.code() == Some(NOTHING) {
        return Ok(None);
    }
    if !ran.status.success() {
        return Err(format!("could not determine if disk {:?} is formatted ({}): {}", device.display(), ran.exit(), ran.words()));
    }
    Ok(kind_of(&ran.stdout))
}

/// Reads `blkid`'s `TYPE=ext4` and `PTTYPE=dos`.
fn kind_of(text: &str) -> Option<String> {
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).filter(|value| !value.is_empty());
    value("TYPE").or_else(|| value("PTTYPE").map(|_| "unknown data, probably partitions")).map(str::to_owned)
}

async fn make(device: &Path, kind: &str) -> Result<(), String> {
    let flags: &[&str] = match kind {
        "ext3" | "ext4" => &["-F", "-m0"],
        "xfs" => &["-f"],
        _ => &[],
    };
    let name = device.display();
    tracing::info!(device = %name, kind, "the disk is blank and gets a file system");
    let all: Vec<_> = flags.iter().map(std::ffi::OsStr::new).chain([device.as_os_str()]).collect();
    let ran = tool::end_of(&format!("mkfs.{kind}"), &all, MAKE).await?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!(
        "format of disk {:?} failed: type:({kind:?}) errcode:({}) output:({})",
        name.to_string(),
        ran.exit(),
        ran.words()
    ))
}

async fn check(device: &Path) -> Result<(), String> {
    /// `fsck` has repaired what was wrong.
    const CORRECTED: i32 = 1;
    const UNCORRECTED: i32 = 4;
    let name = device.display();
    match tool::end_of("fsck", &["-a".as_ref(), device.as_os_str()], CHECK).await {
        Ok(ran) if ran.status.code() == Some(CORRECTED) => {
            tracing::info!(device = %name, "errors of the file system were repaired")
        }
        Ok(ran) if ran.status.code() == Some(UNCORRECTED) => {
            return Err(format!("'fsck' found errors on device {name} but could not correct them: {}", ran.words()));
        }
        Ok(ran) if !ran.status.success() => {
            tracing::info!(device = %name, words = ran.words(), "`fsck` could not check the file system")
        }
        Ok(_) => {}
        Err(why) => tracing::warn!(device = %name, why, "the file system was not checked"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blkid_says() {
        for (text, expected) in [
            ("DEVNAME=/dev/sda\nTYPE=ext4\n", Some("ext4")),
            ("DEVNAME=/dev/sda\nPTTYPE=dos\n", Some("unknown data, probably partitions")),
            ("TYPE=xfs\nPTTYPE=gpt\n", Some("xfs")),
            ("", None),
        ] {
            assert_eq!(kind_of(text).as_deref(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_blank_disk_gets_a_file_system_and_a_full_one_keeps_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, target) = (folder.path().join("disk"), folder.path().join("mounted"));
        std::fs::File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        let device = super::super::loop_device::attach(&disk).await.unwrap();
        let wanted = Wanted { kind: "", options: &[], read_only: true };
        let refused = format_and_mount(&device, &target, wanted).await.unwrap_err();
        assert!(refused.contains("cannot mount unformatted disk"), "{refused}");
        let wanted = Wanted { read_only: false, ..wanted };
        format_and_mount(&device, &target, wanted).await.unwrap();
        std::fs::write(target.join("file"), "kept").unwrap();
        mounting::unmount_below(&target).unwrap();
        let other = format_and_mount(&device, &target, Wanted { kind: "xfs", ..wanted }).await.unwrap_err();
        assert!(other.contains("it already contains ext4"), "{other}");
        format_and_mount(&device, &target, wanted).await.unwrap();
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "kept");
        mounting::unmount_below(&target).unwrap();
        super::super::loop_device::detach(&disk).await.unwrap();
    }
}
