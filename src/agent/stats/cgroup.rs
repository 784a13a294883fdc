//! What a cgroup has used, read from the kernel's files (v1 and v2). Nothing is asked of the engine: its statistics take a second.

use std::path::{Path, PathBuf};

use super::super::pod::cgroup;
use super::super::pod::resources::QosClass;
use crate::cri::CgroupDriver;

/// Where a pod's cgroup and those of its containers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodCgroup {
    class: QosClass,
    uid: String,
    driver: CgroupDriver,
}

/// What a cgroup has used up to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the cgroup was made.
    pub cpu_ns: u64,
    pub memory_bytes: u64,
    /// Without the page cache that the kernel gives up first.
    pub working_set_bytes: u64,
    pub rss_bytes: u64,
    pub cache_bytes: u64,
    pub swap_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// The cgroup's own limit, if it has one.
    pub memory_limit_bytes: Option<u64>,
    pub processes: u64,
    pub cpu: CpuBounds,
}

/// What keeps a cgroup from the CPU, and how often it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuBounds {
    pub shares: u64,
    /// `None` where there is no limit.
    pub quota_us: Option<u64>,
    pub period_us: u64,
    /// Periods in which it ran, those at whose end it was held back, and for how long in all.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_ns: u64,
}

impl PodCgroup {
    pub fn new(class: QosClass, uid: &str, driver: CgroupDriver) -> Self {
        Self { class, uid: uid.to_owned(), driver }
    }

    /// Its path below the root of a hierarchy.
    pub fn path(&self) -> PathBuf {
        Path::new("/").join(cgroup::of_pod(self.class, &self.uid, self.driver))
    }

    /// The path of a container's.
    pub fn container_path(&self, id: &str) -> PathBuf {
        self.path().join(cgroup::container_directory(self.driver, id))
    }

    /// What the whole pod has used; `None` when its cgroup is gone.
    pub fn pod(&self) -> Option<Usage> {
        self.read(|pod| pod)
    }

    /// What one container has used; `None` when its cgroup is gone.
    pub fn container(&self, id: &str) -> Option<Usage> {
        let folder = cgroup::container_directory(self.driver, id);
        self.read(|pod| pod.join(&folder))
    }

    fn read(&self, within: impl Fn(PathBuf) -> PathBuf) -> Option<Usage> {
        let of = |controller: &str| within(cgroup::directory(self.class, &self.uid, self.driver, controller));
        if cgroup::is_unified() { unified(&of("")) } else { legacy(&of("cpuacct"), &of("cpu"), &of("memory"), &of("pids")) }
    }
}

/// What the whole machine has used.
pub fn machine() -> Usage {
    let meminfo = text(Path::new("/proc/meminfo")).unwrap_or_default();
    let kib = |name: &str| field(&meminfo, name).unwrap_or(0) << 10;
    let memory_bytes = kib("MemTotal:").saturating_sub(kib("MemFree:"));
    Usage {
        cpu_ns: text(Path::new("/proc/stat")).map_or(0, |stat| busy_ns(&stat, ticks_per_second())),
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(kib("Inactive(file):")),
        rss_bytes: kib("AnonPages:"),
        cache_bytes: kib("Cached:"),
        swap_bytes: kib("SwapTotal:").saturating_sub(kib("SwapFree:")),
        memory_limit_bytes: Some(kib("MemTotal:")),
        ..Usage::default()
    }
}

fn ticks_per_second() -> u64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// The time of all cores that was neither idle nor waiting for the disk, from `/proc/stat`. Guest time is part of user time.
fn busy_ns(stat: &str, ticks_per_second: u64) -> u64 {
    let Some(line) = stat.lines().find(|line| line.starts_with("cpu ")) else { return 0 };
    let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
    let busy: u64 = times.iter().enumerate().filter(|(at, _)| !matches!(at, 3 | 4) && *at < 8).map(|(_, time)| time).sum();
    busy.saturating_mul(1_000_000_000 / ticks_per_second)
}

fn unified(folder: &Path) -> Option<Usage> {
    let cpu = text(&folder.join("cpu.stat"))?;
    let memory = text(&folder.join("memory.stat")).unwrap_or_default();
    let memory_bytes = number(&folder.join("memory.current")).unwrap_or(0);
    let of = |name| field(&memory, name).unwrap_or(0);
    Some(Usage {
        cpu_ns: field(&cpu, "usage_usec")? * 1_000,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(of("inactive_file")),
        rss_bytes: of("anon"),
        cache_bytes: of("file"),
        swap_bytes: number(&folder.join("memory.swap.current")).unwrap_or(0),
        page_faults: of("pgfault"),
        major_page_faults: of("pgmajfault"),
        memory_limit_bytes: number(&folder.join("memory.max")),
        processes: number(&folder.join("pids.current")).unwrap_or(0),
        cpu: unified_bounds(folder, &cpu),
    })
}

fn unified_bounds(folder: &Path, stat: &str) -> CpuBounds {
    let max = text(&folder.join("cpu.max")).unwrap_or_default();
    let mut words = max.split_whitespace().map(|word| word.parse().ok());
    let of = |name| field(stat, name).unwrap_or(0);
    CpuBounds {
        // As cAdvisor turns a weight into shares.
        shares: number(&folder.join("cpu.weight")).map_or(0, |weight| 2 + weight.saturating_sub(1) * 262_142 / 9_999),
        quota_us: words.next().flatten(),
        period_us: words.next().flatten().unwrap_or(0),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_ns: of("throttled_usec") * 1_000,
    }
}

fn legacy_bounds(folder: &Path) -> CpuBounds {
    let stat = text(&folder.join("cpu.stat")).unwrap_or_default();
    let of = |name| field(&stat, name).unwrap_or(0);
    CpuBounds {
        shares: number(&folder.join("cpu.shares")).unwrap_or(0),
        // Without a limit it is -1, which is no such number.
        quota_us: number(&folder.join("cpu.cfs_quota_us")),
        period_us: number(&folder.join("cpu.cfs_period_us")).unwrap_or(0),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_ns: of("throttled_time"),
    }
}

fn legacy(accounting: &Path, cpu: &Path, memory: &Path, pids: &Path) -> Option<Usage> {
    /// The kernel's word for no limit is the largest number of pages.
    const NO_LIMIT: u64 = 1 << 62;
    let cpu_ns = number(&accounting.join("cpuacct.usage"))?;
    let stat = text(&memory.join("memory.stat")).unwrap_or_default();
    let memory_bytes = number(&memory.join("memory.usage_in_bytes")).unwrap_or(0);
    let of = |name| field(&stat, name).unwrap_or(0);
    Some(Usage {
        cpu_ns,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(of("total_inactive_file")),
        rss_bytes: of("total_rss"),
        cache_bytes: of("total_cache"),
        swap_bytes: of("total_swap"),
        page_faults: of("total_pgfault"),
        major_page_faults: of("total_pgmajfault"),
        memory_limit_bytes: number(&memory.join("memory.limit_in_bytes")).filter(|limit| *limit < NO_LIMIT),
        processes: number(&pids.join("pids.current")).unwrap_or(0),
        cpu: legacy_bounds(cpu),
    })
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn both_versions_say_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(
            &root.join("v2"),
            &[
                ("cpu.stat", "usage_usec 1500\nuser_usec 1000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 70\n"),
                ("cpu.max", "20000 100000\n"),
                ("cpu.weight", "1\n"),
                ("memory.current", "5000\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 3000\nfile 2000\ninactive_file 1000\npgfault 7\npgmajfault 1\n"),
                ("pids.current", "3\n"),
            ],
        );
        let stat = "nr_periods 9\nnr_throttled 4\nthrottled_time 70000\n";
        let bounds = [("cpu.shares", "2\n"), ("cpu.cfs_quota_us", "20000\n"), ("cpu.cfs_period_us", "100000\n")];
        write(&root.join("cpu"), &[("cpuacct.usage", "1500000\n"), ("cpu.stat", stat)]);
        write(&root.join("cpu"), &bounds);
        write(&root.join("pids"), &[("pids.current", "3\n")]);
        let stat = "cache 1\ntotal_cache 2000\ntotal_rss 3000\ntotal_inactive_file 1000\ntotal_pgfault 7\ntotal_pgmajfault 1\n";
        write(
            &root.join("memory"),
            &[("memory.usage_in_bytes", "5000"), ("memory.limit_in_bytes", "9223372036854771712"), ("memory.stat", stat)],
        );
        let new = unified(&root.join("v2")).unwrap();
        let of = |controller: &str| root.join(controller);
        assert_eq!(Some(new), legacy(&of("cpu"), &of("cpu"), &of("memory"), &of("pids")));
        assert_eq!((new.cpu.quota_us, new.cpu.throttled_ns), (Some(20_000), 70_000));
        assert_eq!((new.cpu_ns, new.working_set_bytes, new.memory_limit_bytes), (1_500_000, 4_000, None));
        assert_eq!(unified(&root.join("gone")), None);
    }

    #[test]
    fn the_machine_is_busy_but_for_idle_and_io_wait() {
        assert_eq!(busy_ns("cpu  10 1 5 1000 50 2 3 4 9 9\ncpu0 1 1 1\n", 100), 25 * 10_000_000);
        assert!(machine().cpu_ns > 0 && machine().working_set_bytes > 0);
    }
}
