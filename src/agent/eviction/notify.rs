//! News of the memory from the kernel, so that nobody has to look all the time: pressure (PSI), and, with cgroup v1, the moment in
//! which a threshold is crossed (upstream's `memoryThresholdNotifier`). Where a kernel has neither, the timer of the evictor remains.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tasks waited for memory a twentieth of two seconds. Windows of whole two seconds are those that every process may ask for.
const PSI_TRIGGER: &[u8] = b"some 100000 2000000\0";
const PSI: &str = "/proc/pressure/memory";
const LEGACY: &str = "/sys/fs/cgroup/memory";

/// Says when the memory should be looked at.
pub struct Notifier {
    pressure: Option<AsyncFd<File>>,
    crossing: Option<Crossing>,
}

/// The threshold that is armed in cgroup v1.
struct Crossing {
    event: AsyncFd<File>,
    /// The kernel keeps the threshold as long as this is open.
    _usage: File,
}

impl Notifier {
    /// A notifier of the whole machine's memory, or of nothing where nobody cares.
    pub fn new(is_wanted: bool) -> Self {
        let open = || pressure(Path::new(PSI)).map_err(|error| tracing::info!(%error, "the kernel tells no memory pressure"));
        Self { pressure: is_wanted.then(open).and_then(Result::ok), crossing: None }
    }

    /// Arms the threshold that is this many bytes of use away; a threshold that is passed already is not.
    pub fn arm(&mut self, distance_bytes: Option<u64>) {
        let folder = PathBuf::from(LEGACY);
        self.crossing = distance_bytes.filter(|_| folder.join("cgroup.event_control").exists()).and_then(|distance| {
            crossing(&folder, distance).map_err(|error| tracing::debug!(%error, "no notice of a memory threshold")).ok()
        });
    }

    /// Waits for news, for ever where there are none.
    pub async fn news(&mut self) {
        let (pressure, crossing) = (&mut self.pressure, &mut self.crossing);
        let pressure = async {
            let Some(file) = pressure else { return std::future::pending().await };
            match file.ready(Interest::PRIORITY).await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => std::future::pending().await,
            }
        };
        let crossing = async {
            let Some(crossing) = crossing else { return std::future::pending().await };
            match crossing.event.readable().await {
                Ok(mut guard) => {
                    // The count is of no interest; reading it makes room for the next event.
                    crossing.event.get_ref().read_exact(&mut [0; 8]).ok();
                    guard.clear_ready();
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pressure => {}
            () = crossing => {}
        }
    }
}

fn pressure(path: &Path) -> io::Result<AsyncFd<File>> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    file.write_all(PSI_TRIGGER)?;
    register(file, Interest::PRIORITY)
}

fn register(file: File, interest: Interest) -> io::Result<AsyncFd<File>> {
    // SAFETY: a `File` owns its descriptor, always gives the same one, and is not closed before it is dropped with the `AsyncFd`.
    Ok(unsafe { AsyncFd::register_with_interest(file, interest) }?)
}

fn crossing(folder: &Path, distance_bytes: u64) -> io::Result<Crossing> {
    let usage_path = folder.join("memory.usage_in_bytes");
    let text = std::fs::read_to_string(&usage_path)?;
    // The root's own count differs from the machine's by what the kernel itself uses: only the distance carries over.
    let now: u64 = text.trim().parse().map_err(io::Error::other)?;
    let usage = File::open(&usage_path)?;
    let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let event = File::from(OwnedFd::from(event));
    let line = format!("{} {} {}", event.as_raw_fd(), usage.as_raw_fd(), now.saturating_add(distance_bytes));
    std::fs::write(folder.join("cgroup.event_control"), line)?;
    Ok(Crossing { event: register(event, Interest::READABLE)?, _usage: usage })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_when_a_threshold_is_crossed() {
        if !Path::new(LEGACY).join("cgroup.event_control").exists() {
            // cgroup v2 has no such thresholds: then the notifier waits for pressure alone.
            let mut notifier = Notifier { pressure: None, crossing: None };
            notifier.arm(Some(1 << 20));
            assert!(notifier.crossing.is_none());
            return;
        }
        let mut notifier = Notifier { pressure: None, crossing: None };
        notifier.arm(Some(32 << 20));
        assert!(notifier.crossing.is_some());
        // The kernel looks at thresholds when a cgroup below the root is charged, as that of a container is.
        let group = Path::new(LEGACY).join(format!("orch-test-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let script = format!("echo $$ > {}/cgroup.procs && head -c 128M /dev/zero | tail -c 128M | wc -c", group.display());
        let mut hog = tokio::process::Command::new("sh").args(["-c", &script]).kill_on_drop(true).spawn().unwrap();
        let told = tokio::time::timeout(Duration::from_secs(10), notifier.news()).await;
        assert!(hog.wait().await.unwrap().success());
        std::fs::remove_dir(&group).unwrap();
        assert!(told.is_ok(), "the kernel said nothing");
        notifier.arm(None);
        assert!(notifier.crossing.is_none());
    }
}
