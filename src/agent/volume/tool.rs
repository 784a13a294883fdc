//! The host's own programs (`losetup`, `mkfs.ext4`, `mount`): run with a deadline, their last words become the error. A run that is given
//! up takes what the program started with it (`mount` runs `mount.nfs`).

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

/// Time for one run of a program.
const RUN: Duration = Duration::from_secs(120);
/// Time for a mount: more than the kernel takes to give up an NFS server that is silent.
const MOUNT: Duration = Duration::from_secs(240);
/// Most of a program's last words that an error repeats.
const WORDS: usize = 1_024;

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Its last words: errors, or all that it said.
    pub fn words(&self) -> String {
        let words = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        words.trim().chars().take(WORDS).collect()
    }

    /// `exit status 32`, as upstream's errors have it.
    pub fn exit(&self) -> String {
        self.status.code().map_or_else(|| self.status.to_string(), |code| format!("exit status {code}"))
    }
}

/// The processes of a run that has not ended.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0
            && let Err(error) = killpg(group, Signal::SIGKILL)
        {
            tracing::debug!(%error, "a program that was given up had ended");
        }
    }
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// That it is not there, or took too long.
pub async fn end_of<S: AsRef<OsStr>>(program: &str, arguments: &[S], within: Duration) -> Result<Ran, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed on this host"),
        _ => format!("{program}: {error}"),
    })?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let ended = tokio::time::timeout(within, child.wait_with_output()).await;
    let output = ended.map_err(|_| format!("{program} took longer than {} s", within.as_secs()))?;
    group.0 = None;
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// Runs a program that must succeed; returns what it wrote.
///
/// # Errors
/// That it is not there, took too long, or what it said when it failed.
pub async fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String, String> {
    let ran = end_of(program, arguments, RUN).await?;
    if ran.status.success() { Ok(ran.stdout) } else { Err(format!("{program} failed: {}: {}", ran.status, ran.words())) }
}

/// Mounts by the host's `mount`, which knows the helpers of network file systems.
///
/// # Errors
/// In the words of upstream's `mount-utils`.
pub async fn mount(kind: &str, options: &[String], source: &str, target: &Path) -> Result<(), String> {
    let mut arguments = vec!["-t".to_owned(), kind.to_owned()];
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), options.join(",")]);
    }
    arguments.extend([source.to_owned(), target.display().to_string()]);
    let (why, words) = match end_of("mount", &arguments, MOUNT).await {
        Ok(ran) if ran.status.success() => return Ok(()),
        Ok(ran) => (ran.exit(), ran.words()),
        Err(why) => (why, String::new()),
    };
    let arguments = arguments.join(" ");
    Err(format!("mount failed: {why}\nMounting command: mount\nMounting arguments: {arguments}\nOutput: {words}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_that_is_given_up_takes_its_children_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("sleep 1000 & echo $! > {0}/pid; mv {0}/pid {0}/child; wait", folder.path().display());
        let slow = end_of("sh", &["-c", &script], Duration::from_secs(2)).await;
        assert_eq!(slow.unwrap_err(), "sh took longer than 2 s");
        let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
        let ended = async {
            loop {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
                if stat.is_empty() || stat.contains(") Z") || stat.contains(") X") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), ended).await.is_ok(), "the child is gone a moment later");
    }

    #[tokio::test]
    async fn last_words_are_told() {
        assert_eq!(run("sh", &["-c", "echo out"]).await.unwrap(), "out\n");
        let failed = run("sh", &["-c", "echo why >&2; exit 3"]).await.unwrap_err();
        assert_eq!(failed, "sh failed: exit status: 3: why");
        assert_eq!(
            run::<&str>("orch-no-such-program", &[]).await.unwrap_err(),
            "orch-no-such-program is not installed on this host"
        );
    }
}
