//! Reads the signals: the kernel's files and `statvfs`, a few microseconds in all. The engine is not asked.

use std::path::{Path, PathBuf};

use super::signal::Signal;
use super::state::{Observations, Observed};
use crate::agent::stats::{filesystem::Space, machine};
use crate::api::quantity::{Format, Quantity};

/// Where the signals are read.
#[derive(Debug, Clone)]
pub struct Places {
    /// On the node's file system: volumes and logs.
    pub data_dir: PathBuf,
    /// On that of the engine: images and writable layers.
    pub image_dir: PathBuf,
}

impl Places {
    /// Whether the engine has a file system of its own.
    pub fn has_image_file_system(&self) -> bool {
        let device = |path: &Path| nix::sys::stat::stat(path).map(|stat| stat.st_dev).ok();
        device(&self.data_dir) != device(&self.image_dir)
    }

    /// All signals but those that need a look at the pods. What cannot be read is missing.
    pub fn read(&self) -> Observations {
        let memory = machine();
        let memory = memory.memory_limit_bytes.map(|capacity| {
            let available = capacity.saturating_sub(memory.working_set_bytes);
            (Signal::MemoryAvailable, observed(Signal::MemoryAvailable, available, capacity))
        });
        let pids =
            processes().map(|(available, capacity)| (Signal::PidAvailable, observed(Signal::PidAvailable, available, capacity)));
        let node = of_space(Space::of(&self.data_dir), Signal::NodefsAvailable, Signal::NodefsInodesFree);
        let image = of_space(Space::of(&self.image_dir), Signal::ImagefsAvailable, Signal::ImagefsInodesFree);
        memory.into_iter().chain(pids).chain(node).chain(image).collect()
    }
}

/// A figure of a signal in its format.
pub fn observed(signal: Signal, available: u64, capacity: u64) -> Observed {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let format = if signal.is_bytes() { Format::BinarySi } else { Format::DecimalSi };
    Observed { available: Quantity::new(number(available), format), capacity: number(capacity) }
}

/// A file system that counts no inodes (btrfs) has no such signal.
fn of_space(space: Space, bytes: Signal, inodes: Signal) -> impl Iterator<Item = (Signal, Observed)> {
    let amounts = [(bytes, space.available_bytes, space.capacity_bytes), (inodes, space.inodes_free, space.inodes)];
    let known = amounts.into_iter().filter(|(_, _, capacity)| *capacity > 0);
    known.map(|(signal, available, capacity)| (signal, observed(signal, available, capacity)))
}

/// How many more processes the kernel takes, and how many it takes in all.
pub fn processes() -> Option<(u64, u64)> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    pids(&read("/proc/sys/kernel/pid_max")?, &read("/proc/sys/kernel/threads-max")?, &read("/proc/loadavg")?)
}

fn pids(pid_max: &str, threads_max: &str, loadavg: &str) -> Option<(u64, u64)> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let capacity = number(pid_max)?.min(number(threads_max)?);
    let running = number(loadavg.split_whitespace().nth(3)?.split_once('/')?.1)?;
    Some((capacity.saturating_sub(running), capacity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_those_that_still_fit() {
        assert_eq!(pids("4194304\n", "1000\n", "0.1 0.2 0.3 2/400 12345\n"), Some((600, 1_000)));
        assert_eq!(pids("100\n", "1000\n", "0.1 0.2 0.3 2/400 12345\n"), Some((0, 100)));
        assert_eq!(pids("x", "1", ""), None);
    }

    #[test]
    fn the_machine_has_its_signals() {
        let places = Places { data_dir: PathBuf::from("/"), image_dir: PathBuf::from("/nowhere/at/all") };
        let all = places.read();
        let memory = all[&Signal::MemoryAvailable];
        assert!(memory.available > Quantity::ZERO && memory.available.value() < memory.capacity, "{memory:?}");
        assert!(all.contains_key(&Signal::NodefsAvailable) && all.contains_key(&Signal::PidAvailable));
        assert!(!all.contains_key(&Signal::ImagefsAvailable), "what cannot be read is missing");
    }
}
