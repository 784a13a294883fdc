//! The CPUs of the node: with `--cpu-manager-policy=static`, containers of Guaranteed pods that ask for whole CPUs get some that
//! nobody else runs on. What was given is kept in a file, so that it outlives the agent. Follows upstream's
//! `pkg/kubelet/cm/cpumanager`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cri::{Resources, Runtime, RuntimeError, State, labels};
use crate::rt::files;

mod assign;
mod set;
mod topology;

use assign::{Assignments, Saved};
pub use set::CpuSet;
use topology::Topology;

/// The state, in the agent's folder: upstream's name.
const STATE_FILE: &str = "cpu_manager_state";
const CPUS: &str = "/sys/devices/system/cpu";
/// How long until containers that could not be moved are moved again: upstream's `cpuManagerReconcilePeriod`.
const RETRY: Duration = Duration::from_secs(10);

/// How CPUs are given to containers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Policy {
    /// The kernel shares them out.
    #[default]
    None,
    /// Some containers get CPUs of their own; never those that are kept for the system.
    Static(Kept),
}

/// The CPUs that no container gets for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    These(CpuSet),
    /// So many thousandths of CPUs, made whole.
    Milli(i64),
}

/// The CPUs that a container runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    pub cpus: CpuSet,
    /// Whether no other container runs there.
    pub is_exclusive: bool,
}

/// Who runs where.
pub struct Cpus(Option<Static>);

struct Static {
    topology: Topology,
    reserved: CpuSet,
    file: PathBuf,
    assignments: Mutex<Assignments>,
    /// Counts the changes.
    changes: watch::Sender<u64>,
}

impl Cpus {
    /// Takes up what was assigned before.
    ///
    /// # Errors
    /// Why the policy cannot be followed here, in upstream's words.
    pub fn open(policy: &Policy, data_dir: &Path) -> Result<Self, String> {
        let file = data_dir.join(STATE_FILE);
        let saved = read(&file)?;
        let configured = if *policy == Policy::None { "none" } else { "static" };
        let other = saved.as_ref().map(|saved| saved.policy_name.as_str()).filter(|name| *name != configured);
        if let Some(other) = other {
            let why = format!("configured policy \"{configured}\" differs from state checkpoint policy \"{other}\"");
            return Err(drain(&why, &file));
        }
        let Policy::Static(kept) = policy else { return Ok(Self(None)) };
        let topology = Topology::read(Path::new(CPUS))?;
        let reserved = reserved(kept, &topology)?;
        let assignments = match saved {
            Some(saved) => Assignments::restore(&saved, &topology, &reserved).map_err(|why| drain(&why, &file))?,
            None => Assignments::new(&topology),
        };
        let (assignments, changes) = (Mutex::new(assignments), watch::Sender::new(0));
        let opened = Static { topology, reserved, file, assignments, changes };
        opened.write().map_err(|error| format!("{}: {error}", opened.file.display()))?;
        Ok(Self(Some(opened)))
    }

    /// Nobody has CPUs of its own.
    pub fn shared_by_all() -> Self {
        Self(None)
    }

    /// Whether containers may have CPUs of their own.
    pub fn is_static(&self) -> bool {
        self.0.is_some()
    }

    /// Gives a pod that the node takes what is its own.
    ///
    /// # Errors
    /// That there are too few CPUs, in upstream's words.
    pub fn allocate(&self, uid: &str, pod: &Pod) -> Result<(), String> {
        let Some(policy) = &self.0 else { return Ok(()) };
        policy.change(|all| all.allocate(uid, pod, &policy.topology, &policy.reserved))
    }

    /// Takes back what a pod has that has ended.
    pub fn release(&self, uid: &str) {
        self.retain(|known| known != uid);
    }

    /// Takes back what pods have that are not these.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        let Some(policy) = &self.0 else { return };
        policy.change(|all| {
            let gone: Vec<String> = all.own.keys().filter(|uid| !keep(uid)).cloned().collect();
            gone.iter().for_each(|uid| all.release(uid));
        });
    }

    /// Where a container runs; `None` where the kernel decides.
    pub fn share(&self, uid: &str, container: &str) -> Option<Share> {
        let all = self.0.as_ref()?.assignments.lock();
        let own = all.own.get(uid).and_then(|containers| containers.get(container)).cloned();
        let is_exclusive = own.is_some();
        Some(Share { cpus: own.unwrap_or_else(|| all.shared.clone()), is_exclusive })
    }

    /// Whether any container of a pod has CPUs of its own.
    pub fn has_own(&self, uid: &str) -> bool {
        self.0.as_ref().is_some_and(|policy| policy.assignments.lock().own.contains_key(uid))
    }

    /// Moves running containers to where they belong when that changes, for ever. What starts meanwhile sees to itself.
    pub async fn run(self: Arc<Self>, runtime: Arc<dyn Runtime>) {
        let Some(policy) = &self.0 else { return std::future::pending().await };
        let mut changes = policy.changes.subscribe();
        let mut applied = HashMap::new();
        loop {
            changes.borrow_and_update();
            let is_done = self.apply(&*runtime, &mut applied).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if !is_done => {}
            }
        }
    }

    /// Returns whether every container is where it belongs.
    async fn apply(&self, runtime: &dyn Runtime, applied: &mut HashMap<String, CpuSet>) -> bool {
        let containers = match runtime.list().await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::debug!(%error, "containers were not moved to their CPUs");
                return false;
            }
        };
        let mut is_done = true;
        let running: Vec<_> = containers.iter().filter(|one| one.state == State::Running).collect();
        applied.retain(|id, _| running.iter().any(|one| one.id == *id));
        for one in running {
            let label = |name: &str| one.labels.get(name).map(String::as_str);
            let (Some(uid), Some(name)) = (label(labels::POD_UID), label(labels::CONTAINER_NAME)) else { continue };
            let Some(share) = self.share(uid, name).filter(|share| applied.get(&one.id) != Some(&share.cpus)) else { continue };
            match runtime.update(&one.id, &of_cpus(&share.cpus)).await {
                Ok(()) => {
                    applied.insert(one.id.clone(), share.cpus);
                }
                // It has ended since it was listed.
                Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => {}
                Err(error) => {
                    tracing::warn!(id = one.id, cpus = %share.cpus, %error, "a container was not moved to its CPUs; trying again");
                    is_done = false;
                }
            }
        }
        is_done
    }
}

/// The change of a container that moves it to these CPUs, and changes nothing else.
pub fn of_cpus(cpus: &CpuSet) -> Resources {
    Resources { cpuset: Some(cpus.to_string()), ..Resources::default() }
}

impl Static {
    /// Changes the assignments; what changed is on disk before anybody is told.
    fn change<T>(&self, change: impl FnOnce(&mut Assignments) -> T) -> T {
        let (result, is_news) = {
            let mut all = self.assignments.lock();
            let before = all.clone();
            let result = change(&mut all);
            (result, *all != before)
        };
        if is_news {
            if let Err(error) = self.write() {
                tracing::error!(path = %self.file.display(), %error, "the assignment of CPUs was not written");
            }
            self.changes.send_modify(|count| *count += 1);
        }
        result
    }

    fn write(&self) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(&self.assignments.lock().save()).map_err(std::io::Error::other)?;
        files::write(&self.file, &bytes, 0o600)
    }
}

fn read(file: &Path) -> Result<Option<Saved>, String> {
    match std::fs::read(file) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| drain(&error.to_string(), file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

fn drain(why: &str, file: &Path) -> String {
    format!(
        "could not restore state from checkpoint: {why}, please drain this node and delete the CPU manager checkpoint file \"{}\" \
         before restarting",
        file.display()
    )
}

/// The CPUs that are kept for the system.
fn reserved(kept: &Kept, topology: &Topology) -> Result<CpuSet, String> {
    let all = topology.all();
    match kept {
        Kept::These(cpus) if cpus.is_within(&all) && !cpus.is_empty() => Ok(cpus.clone()),
        Kept::These(cpus) => Err(format!("reserved CPUs \"{cpus}\" are not among those of the machine, \"{all}\"")),
        Kept::Milli(milli) if *milli <= 0 => {
            Err("the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero".to_owned())
        }
        Kept::Milli(milli) => {
            let count = usize::try_from(milli.saturating_add(999) / 1_000).unwrap_or(usize::MAX);
            let taken = topology.take(&all, count);
            taken.ok_or_else(|| format!("unable to reserve the required amount of CPUs (size of {all} did not equal {count})"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_policy_outlives_the_agent_and_is_not_changed_behind_its_back() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy::Static(Kept::These("0".parse().unwrap()));
        let cpus = Cpus::open(&policy, folder.path()).unwrap();
        let all = Topology::read(Path::new(CPUS)).unwrap().all();
        let amounts = json!({"cpu": (all.len() - 1).to_string(), "memory": "1Mi"});
        let container = json!({"name": "c", "resources": {"limits": amounts, "requests": amounts}});
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap();
        cpus.allocate("u", &pod).unwrap();
        let expected = Share { cpus: all.minus(&"0".parse().unwrap()), is_exclusive: all.len() > 1 };
        drop(cpus);
        let cpus = Cpus::open(&policy, folder.path()).unwrap();
        if all.len() > 1 {
            assert_eq!(cpus.share("u", "c"), Some(expected));
            assert_eq!(cpus.share("other", "c").unwrap().cpus.to_string(), "0");
        }
        cpus.release("u");
        assert_eq!(cpus.share("u", "c").unwrap(), Share { cpus: all, is_exclusive: false });
        let error = Cpus::open(&Policy::None, folder.path()).err().unwrap();
        assert!(error.contains("configured policy \"none\" differs from state checkpoint policy \"static\""), "{error}");
        let nothing = Cpus::open(&Policy::Static(Kept::Milli(0)), tempfile::tempdir().unwrap().path()).err().unwrap();
        assert_eq!(nothing, "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero");
    }
}
