//! Warnings about pods (upstream `pkg/api/pod/warnings.go`).

use std::collections::{BTreeMap, HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::field::Path;
use crate::api::quantity::Quantity;
use crate::kinds::check::str_of;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const NULL_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// Texts for a Pod.
pub fn warnings(pod: &Pod) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(spec) = &pod.spec {
        self::spec(&mut texts, &Path::new("spec"), spec);
    }
    texts
}

/// Texts for a specification, in a pod or a template.
pub fn spec(texts: &mut Vec<String>, path: &Path, spec: &PodSpec) {
    placement(texts, path, spec);
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        self::volume(texts, &path.child("volumes").index(index), volume);
    }
    names_twice(texts, path, spec);
    bytes(texts, &path.child("overhead"), spec.overhead.as_ref());
    for (path, each) in containers(path, spec) {
        container(texts, &path, each);
    }
    ports(texts, path, spec);
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        texts.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    pod_affinity(texts, path, spec);
}

fn containers<'a>(path: &Path, spec: &'a PodSpec) -> impl Iterator<Item = (Path, &'a Container)> {
    let (init, apps) = (path.child("initContainers"), path.child("containers"));
    let init = spec.init_containers.iter().flatten().enumerate().map(move |(index, each)| (init.index(index), each));
    init.chain(spec.containers.iter().enumerate().map(move |(index, each)| (apps.index(index), each)))
}

/// Labels of nodes that have other names now, and spreading that counts no pod.
fn placement(texts: &mut Vec<String>, path: &Path, spec: &PodSpec) {
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(message) = deprecated_label(key) {
            texts.push(format!("{}: {message}", path.child("nodeSelector").key(key)));
        }
    }
    if let Some(nodes) = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref()) {
        let path = path.child("affinity").child("nodeAffinity");
        let required = nodes.required_during_scheduling_ignored_during_execution.iter();
        for (index, term) in required.flat_map(|required| &required.node_selector_terms).enumerate() {
            node_term(texts, &path.child(REQUIRED).child("nodeSelectorTerms").index(index), term);
        }
        let preferred = nodes.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        for (index, term) in preferred.enumerate() {
            node_term(texts, &path.child(PREFERRED).index(index).child("preference"), &term.preference);
        }
    }
    for (index, constraint) in spec.topology_spread_constraints.iter().flatten().enumerate() {
        let path = path.child("topologySpreadConstraints").index(index);
        if let Some(message) = deprecated_label(&constraint.topology_key) {
            texts.push(format!("{}: {} is {message}", path.child("topologyKey"), constraint.topology_key));
        }
        if constraint.label_selector.is_none() {
            texts.push(format!("{}: {NULL_SELECTOR}", path.child("labelSelector")));
        }
    }
}

fn node_term(texts: &mut Vec<String>, path: &Path, term: &NodeSelectorTerm) {
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        if let Some(message) = deprecated_label(&requirement.key) {
            let path = path.child("matchExpressions").index(index).child("key");
            texts.push(format!("{path}: {} is {message}", requirement.key));
        }
    }
}

fn volume(texts: &mut Vec<String>, path: &Path, volume: &Volume) {
    let table = [
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some(), "deprecated in v1.11, non-functional in v1.16+"),
        ("gitRepo", volume.git_repo.is_some(), "deprecated in v1.11, and disabled by default in v1.33+"),
        ("scaleIO", volume.scale_io.is_some(), "deprecated in v1.16, non-functional in v1.22+"),
        ("flocker", volume.flocker.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("storageOS", volume.storageos.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("quobyte", volume.quobyte.is_some(), "deprecated in v1.22, non-functional in v1.25+"),
        ("glusterfs", volume.glusterfs.is_some(), "deprecated in v1.25, non-functional in v1.26+"),
        ("cephfs", volume.cephfs.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
        ("rbd", volume.rbd.is_some(), "deprecated in v1.28, non-functional in v1.31+"),
    ];
    texts.extend(table.iter().filter(|(_, is_given, _)| *is_given).map(|(name, _, why)| format!("{}: {why}", path.child(name))));
}

fn names_twice(texts: &mut Vec<String>, path: &Path, spec: &PodSpec) {
    let mut seen = HashSet::new();
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if !seen.insert(&alias.ip) {
            texts.push(format!("{}: duplicate ip {:?}", path.child("hostAliases").index(index).child("ip"), alias.ip));
        }
    }
    let mut seen = HashSet::new();
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        let path = path.child("imagePullSecrets").index(index).child("name");
        if !seen.insert(&secret.name) {
            texts.push(format!("{path}: duplicate name {:?}", secret.name));
        }
        if secret.name.is_empty() {
            texts.push(format!("{path}: invalid empty name {:?}", secret.name));
        }
    }
}

/// Memory and storage come in whole bytes.
fn bytes(texts: &mut Vec<String>, path: &Path, amounts: Option<&BTreeMap<String, Typed>>) {
    for (name, amount) in
        amounts.into_iter().flatten().filter(|(name, _)| matches!(name.as_str(), "memory" | "ephemeral-storage"))
    {
        if Quantity::try_from(amount).is_ok_and(|amount| amount.milli_value() % 1_000 != 0) {
            texts.push(format!("{}: fractional byte value {:?} is invalid, must be an integer", path.key(name), amount.0));
        }
    }
}

fn container(texts: &mut Vec<String>, path: &Path, container: &Container) {
    if let Some(resources) = &container.resources {
        let path = path.child("resources");
        bytes(texts, &path.child("limits"), resources.limits.as_ref());
        bytes(texts, &path.child("requests"), resources.requests.as_ref());
    }
    let mut seen = HashSet::new();
    for (index, variable) in container.env.iter().flatten().enumerate() {
        // A later value that is built from the earlier one is meant.
        let reference = format!("$({})", variable.name);
        let value = str_of(&variable.value);
        let hides = variable.value_from.is_some() || value == reference || !value.contains(&reference);
        if !seen.insert(&variable.name) && hides {
            let path = path.child("env").index(index);
            texts
                .push(format!("{path}: hides previous definition of {:?}, which may be dropped when using apply", variable.name));
        }
    }
}

/// Ports that stand twice in the pod, in whichever container.
fn ports(texts: &mut Vec<String>, path: &Path, spec: &PodSpec) {
    let mut known: HashMap<(i32, &str), Vec<(Path, &ContainerPort)>> = HashMap::new();
    let host = |port: &ContainerPort| port.host_port.unwrap_or(0);
    for (path, container) in containers(path, spec) {
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let path = path.child("ports").index(index);
            let host_ip = str_of(&port.host_ip);
            if !host_ip.is_empty() && host(port) == 0 {
                let (name, number, protocol) = (str_of(&port.name), port.container_port, str_of(&port.protocol));
                let shown = format!("{{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{host_ip}}}");
                texts.push(format!("{path}: hostIP set without hostPort: {shown}"));
            }
            let others = known.entry((port.container_port, str_of(&port.protocol))).or_default();
            for (other_path, other) in others.iter() {
                let other_ip = str_of(&other.host_ip);
                let kind = if host_ip == other_ip && host(port) == host(other) {
                    "duplicate"
                } else if host(port) == 0 || host(other) == 0 {
                    "overlapping"
                } else if host(port) == host(other) && host_ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                texts.push(format!("{path}: {kind} port definition with {other_path}"));
            }
            others.push((path, port));
        }
    }
}

fn pod_affinity(texts: &mut Vec<String>, path: &Path, spec: &PodSpec) {
    let Some(affinity) = &spec.affinity else { return };
    let mut terms = |path: Path, required: Option<&Vec<PodAffinityTerm>>, preferred: Vec<&PodAffinityTerm>| {
        for (index, term) in required.into_iter().flatten().enumerate() {
            if term.label_selector.is_none() {
                texts.push(format!("{}: {NULL_SELECTOR}", path.child(REQUIRED).index(index).child("labelSelector")));
            }
        }
        for (index, term) in preferred.into_iter().enumerate() {
            if term.label_selector.is_none() {
                let path = path.child(PREFERRED).index(index).child("podAffinityTerm");
                texts.push(format!("{}: {NULL_SELECTOR}", path.child("labelSelector")));
            }
        }
    };
    let path = path.child("affinity");
    if let Some(pods) = &affinity.pod_affinity {
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let preferred = preferred.map(|weighted| &weighted.pod_affinity_term).collect();
        terms(path.child("podAffinity"), pods.required_during_scheduling_ignored_during_execution.as_ref(), preferred);
    }
    if let Some(pods) = &affinity.pod_anti_affinity {
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        let preferred = preferred.map(|weighted| &weighted.pod_affinity_term).collect();
        terms(path.child("podAntiAffinity"), pods.required_during_scheduling_ignored_during_execution.as_ref(), preferred);
    }
}

/// What is said of a label that another took the place of.
fn deprecated_label(key: &str) -> Option<String> {
    let instead = match key {
        "beta.kubernetes.io/arch" => "kubernetes.io/arch",
        "beta.kubernetes.io/os" => "kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
        _ => return None,
    };
    let since = if key.starts_with("beta.kubernetes.io/") && !key.ends_with("instance-type") { "v1.14" } else { "v1.17" };
    Some(format!("deprecated since {since}; use {instead:?} instead"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn warn(spec: Value) -> Vec<String> {
        warnings(&serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
    }

    #[test]
    fn ports_that_stand_twice() {
        let port = |more: Value| {
            let mut port = json!({"containerPort": 80, "protocol": "TCP"});
            port.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            port
        };
        let pod = |one: Value, other: Value| json!({"containers": [{"name": "a", "ports": [port(one)]}, {"name": "b", "ports": [port(other)]}]});
        let table = [
            (json!({}), json!({}), "duplicate"),
            (json!({}), json!({"hostPort": 1}), "overlapping"),
            (json!({"hostPort": 1, "hostIP": "1.1.1.1"}), json!({"hostPort": 1}), "dangerously ambiguous"),
        ];
        for (one, other, kind) in table {
            let expected = format!("spec.containers[1].ports[0]: {kind} port definition with spec.containers[0].ports[0]");
            assert_eq!(warn(pod(one, other)), [expected]);
        }
        assert!(warn(pod(json!({}), json!({"protocol": "UDP"}))).is_empty());
        let lonely = json!({"containers": [{"name": "a", "ports": [port(json!({"hostIP": "1.1.1.1"}))]}]});
        let expected = "spec.containers[0].ports[0]: hostIP set without hostPort: {Name: HostPort:0 ContainerPort:80 Protocol:TCP HostIP:1.1.1.1}";
        assert_eq!(warn(lonely), [expected]);
    }

    #[test]
    fn variables_that_hide_others() {
        let env = |value: &str| json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "X", "value": value}]}]});
        assert_eq!(warn(env("$(X) and 2")), Vec::<String>::new());
        for value in ["2", "$(X)"] {
            let expected = "spec.containers[0].env[1]: hides previous definition of \"X\", which may be dropped when using apply";
            assert_eq!(warn(env(value)), [expected], "{value}");
        }
    }

    #[test]
    fn selectors_of_nothing_and_old_names() {
        let term = json!({"topologyKey": "kubernetes.io/hostname"});
        let spec = json!({"containers": [], "nodeSelector": {"beta.kubernetes.io/os": "linux"},
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}},
            "overhead": {"memory": "1500m"}});
        assert_eq!(
            warn(spec),
            [
                "spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead",
                "spec.overhead[memory]: fractional byte value \"1500m\" is invalid, must be an integer",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
            ]
        );
    }
}
