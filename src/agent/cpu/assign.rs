//! Who has which CPUs: whole ones for containers of Guaranteed pods that ask for whole ones, the rest for all others (upstream
//! `cpumanager/policy_static.go`). Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::{Deserialize, Serialize};

use super::set::CpuSet;
use super::topology::Topology;
use crate::agent::pod::resources::{QosClass, qos_class, request};

/// CPUs by the container's name.
type ByContainer = BTreeMap<String, CpuSet>;

/// Everything that is assigned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignments {
    /// What containers without CPUs of their own share, the reserved ones among it.
    pub shared: CpuSet,
    /// By the pod's uid.
    pub own: BTreeMap<String, ByContainer>,
}

/// The form on disk: upstream's `cpu_manager_state`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    pub policy_name: String,
    default_cpu_set: String,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, String>>,
}

impl Assignments {
    /// All CPUs are shared.
    pub fn new(topology: &Topology) -> Self {
        Self { shared: topology.all(), own: BTreeMap::new() }
    }

    /// As it is written.
    pub fn save(&self) -> Saved {
        let texts = |one: &ByContainer| one.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect();
        Saved {
            policy_name: "static".to_owned(),
            default_cpu_set: self.shared.to_string(),
            entries: self.own.iter().map(|(uid, one)| (uid.clone(), texts(one))).collect(),
        }
    }

    /// What was written, if it fits the machine and what is reserved.
    ///
    /// # Errors
    /// What does not fit, in upstream's words.
    pub fn restore(saved: &Saved, topology: &Topology, reserved: &CpuSet) -> Result<Self, String> {
        let mut restored = Self { shared: saved.default_cpu_set.parse()?, own: BTreeMap::new() };
        if !reserved.is_within(&restored.shared) {
            let shared = &restored.shared;
            return Err(format!("not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{shared}\""));
        }
        let mut total = restored.shared.clone();
        for (uid, containers) in &saved.entries {
            for (name, cpus) in containers {
                let cpus: CpuSet = cpus.parse()?;
                if !cpus.is_apart_from(&restored.shared) {
                    let shared = &restored.shared;
                    return Err(format!(
                        "pod: {uid}, container: {name} cpuset: \"{cpus}\" overlaps with default cpuset \"{shared}\""
                    ));
                }
                total = total.union(&cpus);
                restored.own.entry(uid.clone()).or_default().insert(name.clone(), cpus);
            }
        }
        if total != topology.all() {
            let all = topology.all();
            return Err(format!("current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{total}\""));
        }
        Ok(restored)
    }

    /// Gives each container of a pod that is to have CPUs of its own as many; all of them, or nothing changes. A pod that has them
    /// already keeps them.
    ///
    /// # Errors
    /// Upstream's words.
    pub fn allocate(&mut self, uid: &str, pod: &Pod, topology: &Topology, reserved: &CpuSet) -> Result<(), String> {
        if self.own.contains_key(uid) {
            return Ok(());
        }
        let Some(spec) = &pod.spec else { return Ok(()) };
        let (mut own, mut reusable) = (ByContainer::new(), CpuSet::default());
        let mut shared = self.shared.clone();
        let init = spec.init_containers.iter().flatten().map(|one| (one, one.restart_policy.as_deref() != Some("Always")));
        for (container, runs_first) in init.chain(spec.containers.iter().map(|one| (one, false))) {
            let count = whole_cpus(pod, container);
            if count == 0 {
                continue;
            }
            // Init containers have ended when the others start: these get the same CPUs.
            let from_before = topology.take(&reusable, count.min(reusable.len())).unwrap_or_default();
            let free = shared.minus(reserved);
            let lacking = || {
                let available = free.len() + reusable.len();
                format!("not enough cpus available to satisfy request: requested={count}, available={available}")
            };
            let fresh = topology.take(&free, count - from_before.len()).ok_or_else(lacking)?;
            shared = shared.minus(&fresh);
            let cpus = from_before.union(&fresh);
            reusable = if runs_first { reusable.union(&cpus) } else { reusable.minus(&cpus) };
            own.insert(container.name.clone(), cpus);
        }
        if !own.is_empty() {
            self.shared = shared;
            self.own.insert(uid.to_owned(), own);
        }
        Ok(())
    }

    /// Takes back what a pod has, if it has anything.
    pub fn release(&mut self, uid: &str) {
        for cpus in self.own.remove(uid).unwrap_or_default().values() {
            self.shared = self.shared.union(cpus);
        }
    }
}

/// How many CPUs a container is to have for itself: those that a Guaranteed pod asks for in whole numbers.
pub fn whole_cpus(pod: &Pod, container: &Container) -> usize {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let has_of_pod = of_pod.is_some_and(|resources| resources.requests.is_some() || resources.limits.is_some());
    if has_of_pod || qos_class(pod) != QosClass::Guaranteed {
        return 0;
    }
    let wanted = request(container, "cpu").filter(|wanted| wanted.is_whole());
    wanted.and_then(|wanted| usize::try_from(wanted.value()).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::topology::tests::machine;
    use super::*;

    fn asks(cpu: &str) -> Value {
        json!({"limits": {"cpu": cpu, "memory": "1Mi"}, "requests": {"cpu": cpu, "memory": "1Mi"}})
    }

    fn pod(containers: &[&str], init: &[(&str, Option<&str>)]) -> Pod {
        let containers: Vec<Value> =
            containers.iter().enumerate().map(|(at, cpu)| json!({"name": format!("c{at}"), "resources": asks(cpu)})).collect();
        let init: Vec<Value> = init
            .iter()
            .enumerate()
            .map(|(at, (cpu, policy))| json!({"name": format!("i{at}"), "resources": asks(cpu), "restartPolicy": policy}))
            .collect();
        serde_json::from_value(json!({"spec": {"containers": containers, "initContainers": init}})).unwrap()
    }

    #[test]
    fn whole_cpus_are_given_and_taken_back() {
        let (machine, reserved) = (machine(1, 4, 1), "0".parse().unwrap());
        let mut all = Assignments::new(&machine);
        all.allocate("a", &pod(&["2"], &[]), &machine, &reserved).unwrap();
        all.allocate("b", &pod(&["500m", "1500m"], &[]), &machine, &reserved).unwrap();
        assert_eq!((all.own["a"]["c0"].to_string(), all.shared.to_string()), ("1-2".to_owned(), "0,3".to_owned()));
        assert!(!all.own.contains_key("b"), "parts of CPUs are of the shared ones");
        let before = all.clone();
        let refused = all.allocate("c", &pod(&["1", "1"], &[]), &machine, &reserved);
        assert_eq!(refused.unwrap_err(), "not enough cpus available to satisfy request: requested=1, available=0");
        assert_eq!(all, before, "all or nothing");
        let restored = Assignments::restore(&all.save(), &machine, &reserved).unwrap();
        assert_eq!(restored, all);
        all.release("a");
        all.release("a");
        assert_eq!(all, Assignments::new(&machine));
    }

    #[test]
    fn init_containers_leave_their_cpus_to_the_others() {
        let (machine, reserved) = (machine(1, 4, 1), "0".parse().unwrap());
        let mut all = Assignments::new(&machine);
        all.allocate("a", &pod(&["2"], &[("3", None)]), &machine, &reserved).unwrap();
        assert_eq!((all.own["a"]["i0"].to_string(), all.own["a"]["c0"].to_string()), ("1-3".to_owned(), "1-2".to_owned()));
        all.release("a");
        all.allocate("b", &pod(&["1"], &[("2", Some("Always"))]), &machine, &reserved).unwrap();
        assert_eq!((all.own["b"]["i0"].to_string(), all.own["b"]["c0"].to_string()), ("1-2".to_owned(), "3".to_owned()));
    }

    #[test]
    fn what_was_saved_must_fit() {
        let machine = machine(1, 4, 1);
        let saved = |shared: &str, own: &str| Saved {
            policy_name: "static".to_owned(),
            default_cpu_set: shared.to_owned(),
            entries: [("u".to_owned(), [("c".to_owned(), own.to_owned())].into())].into(),
        };
        let table = [
            (saved("0,2-3", "1"), None),
            (saved("2-3", "0-1"), Some("not all reserved cpus: \"0\" are present in defaultCpuSet: \"2-3\"")),
            (saved("0-3", "1"), Some("pod: u, container: c cpuset: \"1\" overlaps with default cpuset \"0-3\"")),
            (saved("0", "1"), Some("current set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-1\"")),
        ];
        for (saved, why) in table {
            let result = Assignments::restore(&saved, &machine, &"0".parse().unwrap());
            assert_eq!(result.err().as_deref(), why, "{saved:?}");
        }
    }
}
