//! The host's own programs (`losetup`, `mkfs.ext4`, `mount.nfs`): run with a deadline, their last words become the error.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Time for one run of a program.
const RUN: Duration = Duration::from_secs(120);
/// Most of a program's last words that an error repeats.
const WORDS: usize = 1_024;

/// Runs a program that must succeed; returns what it wrote.
///
/// # Errors
/// That it is not there, took too long, or what it said when it failed.
pub async fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(RUN, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("{program} is not installed on this host"));
        }
        Ok(Err(error)) => return Err(format!("{program}: {error}")),
        Err(_) => return Err(format!("{program} took longer than {} s", RUN.as_secs())),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words: String = words.trim().chars().take(WORDS).collect();
    Err(format!("{program} failed: {}: {words}", output.status))
}
