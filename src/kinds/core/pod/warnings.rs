//! Warnings about pods (upstream `pkg/api/pod/warnings.go`).

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::api::field::Path;
use crate::kinds::check::str_of;

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
    for key in spec.node_selector.iter().flatten().map(|(key, _)| key) {
        if let Some(instead) = deprecated_label(key) {
            texts.push(format!("{}: deprecated since v1.14; use {instead:?} instead", path.child("nodeSelector").key(key)));
        }
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        if spec.host_aliases.iter().flatten().take(index).any(|earlier| earlier.ip == alias.ip) {
            texts.push(format!("{}: duplicate ip {:?}", path.child("hostAliases").index(index), alias.ip));
        }
    }
    for (index, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        if secret.name.is_empty() {
            let path = path.child("imagePullSecrets").index(index).child("name");
            texts.push(format!("{path}: invalid empty name {:?}", secret.name));
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if volume.git_repo.is_some() {
            let path = path.child("volumes").index(index).child("gitRepo");
            texts.push(format!("{path}: deprecated in v1.11, and disabled by default in v1.33+"));
        }
    }
    if spec.termination_grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        texts.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.child("terminationGracePeriodSeconds")
        ));
    }
    for (index, each) in spec.init_containers.iter().flatten().enumerate() {
        container(texts, &path.child("initContainers").index(index), each);
    }
    for (index, each) in spec.containers.iter().enumerate() {
        container(texts, &path.child("containers").index(index), each);
    }
}

fn container(texts: &mut Vec<String>, path: &Path, container: &Container) {
    let mut seen = HashSet::new();
    for (index, variable) in container.env.iter().flatten().enumerate() {
        if !seen.insert(&variable.name) {
            let path = path.child("env").index(index);
            texts
                .push(format!("{path}: hides previous definition of {:?}, which may be dropped when using apply", variable.name));
        }
    }
    let mut ports: HashMap<(i32, &str), usize> = HashMap::new();
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let key = (port.container_port, str_of(&port.protocol));
        match ports.get(&key) {
            Some(first) => texts.push(format!(
                "{}: duplicate port definition with {}",
                path.child("ports").index(index),
                path.child("ports").index(*first)
            )),
            None => {
                ports.insert(key, index);
            }
        }
    }
    for (list, amounts) in
        container.resources.iter().flat_map(|resources| [("limits", &resources.limits), ("requests", &resources.requests)])
    {
        for (name, amount) in amounts.iter().flatten() {
            let is_fraction = name == "memory" && amount.0.ends_with('m');
            if is_fraction {
                let path = path.child("resources").child(list).key(name);
                texts.push(format!("{path}: fractional byte value {:?} is invalid, must be an integer", amount.0));
            }
        }
    }
}

/// The label that took the place of a deprecated one.
fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "kubernetes.io/arch",
        "beta.kubernetes.io/os" => "kubernetes.io/os",
        "failure-domain.beta.kubernetes.io/region" => "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone" => "topology.kubernetes.io/zone",
        "beta.kubernetes.io/instance-type" => "node.kubernetes.io/instance-type",
        _ => return None,
    })
}
