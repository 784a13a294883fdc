//! Which CPUs share a core and a socket, and which are taken together: whole sockets, whole cores, then single threads where they
//! leave the least behind (upstream `cpumanager/cpu_assignment.go`, packed).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::set::CpuSet;

/// Where a CPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    socket: u32,
    core: u32,
}

/// The machine's CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology(BTreeMap<u32, Place>);

impl Topology {
    /// Reads the CPUs that are online from the kernel's folder (`/sys/devices/system/cpu`).
    ///
    /// # Errors
    /// What could not be read.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let read = |path: &Path| fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()));
        let online: CpuSet = read(&folder.join("online"))?.parse()?;
        let place = |cpu: u32| {
            let number = |name: &str| {
                let text = read(&folder.join(format!("cpu{cpu}/topology/{name}"))).ok()?;
                text.trim().parse::<u32>().ok()
            };
            // A kernel that does not tell has one thread a core and one socket.
            (cpu, Place { socket: number("physical_package_id").unwrap_or(0), core: number("core_id").unwrap_or(cpu) })
        };
        Ok(Self(online.iter().map(place).collect()))
    }

    /// All CPUs.
    pub fn all(&self) -> CpuSet {
        self.0.keys().copied().collect()
    }

    /// Takes so many of those that are free; `None` if there are not enough.
    pub fn take(&self, free: &CpuSet, count: usize) -> Option<CpuSet> {
        let mut left = count;
        let mut taken = CpuSet::default();
        for whole in [Self::socket, Self::core] {
            for group in self.groups(whole).into_values() {
                if group.len() <= left && group.is_within(free) && group.is_apart_from(&taken) {
                    left -= group.len();
                    taken = taken.union(&group);
                }
            }
        }
        // Single threads come from sockets that are used already, and from cores that are broken up already.
        let rest = free.minus(&taken);
        let cores = self.groups(Self::core);
        let mut singles: Vec<u32> = rest.iter().collect();
        singles.sort_by_cached_key(|cpu| {
            let place = self.0.get(cpu).copied();
            let is_near = taken.iter().any(|taken| self.0.get(&taken).map(|at| at.socket) == place.map(|at| at.socket));
            let core = place.and_then(|place| cores.get(&(place.socket, place.core)));
            let free_in_core = core.map_or(1, |core| core.iter().filter(|cpu| rest.contains(*cpu)).count());
            (!is_near, free_in_core, *cpu)
        });
        if singles.len() < left {
            return None;
        }
        Some(taken.union(&singles.into_iter().take(left).collect()))
    }

    fn socket(place: Place) -> (u32, u32) {
        (place.socket, u32::MAX)
    }

    fn core(place: Place) -> (u32, u32) {
        (place.socket, place.core)
    }

    fn groups(&self, by: fn(Place) -> (u32, u32)) -> BTreeMap<(u32, u32), CpuSet> {
        let mut groups: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
        for (cpu, place) in &self.0 {
            groups.entry(by(*place)).or_default().push(*cpu);
        }
        groups.into_iter().map(|(key, cpus)| (key, cpus.into_iter().collect())).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A machine of these many sockets, cores a socket, and threads a core; the threads of a core are far apart, as usual.
    pub fn machine(sockets: u32, cores: u32, threads: u32) -> Topology {
        let all = (0..sockets * cores * threads).map(|cpu| {
            let core = cpu % (sockets * cores);
            (cpu, Place { socket: core / cores, core })
        });
        Topology(all.collect())
    }

    #[test]
    fn whole_cores_and_sockets_first() {
        // Two sockets of two cores of two threads: cores are {0,4} {1,5} on socket 0, {2,6} {3,7} on socket 1.
        let machine = machine(2, 2, 2);
        let table = [
            ("0-7", 4, Some("0-1,4-5")),
            ("0-7", 2, Some("0,4")),
            ("1-7", 4, Some("2-3,6-7")),
            ("1-7", 2, Some("1,5")),
            ("1-7", 1, Some("4")),
            ("0-7", 3, Some("0-1,4")),
            ("0-7", 8, Some("0-7")),
            ("0-7", 9, None),
            ("", 1, None),
            ("3", 0, Some("")),
        ];
        for (free, count, expected) in table {
            let taken = machine.take(&free.parse().unwrap(), count).map(|taken| taken.to_string());
            assert_eq!(taken.as_deref(), expected, "{count} of {free:?}");
        }
    }

    #[test]
    fn the_kernel_tells_the_topology() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("online"), "0-1\n").unwrap();
        let topology = folder.path().join("cpu1/topology");
        fs::create_dir_all(&topology).unwrap();
        fs::write(topology.join("core_id"), "7\n").unwrap();
        fs::write(topology.join("physical_package_id"), "1\n").unwrap();
        let read = Topology::read(folder.path()).unwrap();
        assert_eq!(read, Topology([(0, Place { socket: 0, core: 0 }), (1, Place { socket: 1, core: 7 })].into()));
        assert!(Topology::read(Path::new("/nowhere/at/all")).is_err());
    }
}
