//! [`PodInfo`]: what the scheduler wants to know of a pod, worked out once.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::resources::{self, Resources};
use super::snapshot::Namespaces;
use crate::api::selector::label::Selector;

/// A port of the host that a pod wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be had on one host.
    pub fn collides(&self, other: &Self) -> bool {
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port && self.protocol == other.protocol && (any(&self.ip) || any(&other.ip) || self.ip == other.ip)
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Debug, Clone)]
pub struct AffinityTerm {
    pub selector: Selector,
    pub namespaces: Vec<String>,
    /// By labels of their namespaces, pods beside those of `namespaces`.
    pub namespace_selector: Option<Selector>,
    pub topology_key: String,
}

impl AffinityTerm {
    /// Whether the term means this pod.
    pub fn matches(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        self.selector.matches(pod.labels())
            && (self.namespaces.iter().any(|namespace| namespace == pod.namespace())
                || self.namespace_selector.as_ref().is_some_and(|selector| {
                    selector.is_everything() || namespaces.labels(pod.namespace()).is_some_and(|labels| selector.matches(labels))
                }))
    }
}

/// What a pod would like to be near to, or far from.
#[derive(Debug, Clone)]
pub struct PreferredTerm {
    pub term: AffinityTerm,
    /// 1 to 100; below zero to stay away.
    pub weight: i64,
}

/// A topology spread constraint with its selector parsed.
#[derive(Debug, Clone)]
pub struct SpreadConstraint {
    pub max_skew: i64,
    pub topology_key: String,
    pub selector: Selector,
    /// Whether it must hold; else it only counts in scores.
    pub is_required: bool,
    pub min_domains: i64,
    pub honors_affinity: bool,
    pub honors_taints: bool,
}

/// A pod and what was worked out of it.
#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub requests: Resources,
    pub scored: Resources,
    pub host_ports: Vec<HostPort>,
    pub affinity: Vec<AffinityTerm>,
    pub anti_affinity: Vec<AffinityTerm>,
    pub preferred: Vec<PreferredTerm>,
    pub spread: Vec<SpreadConstraint>,
    /// The uid of the controller, by which pods without constraints of their own are spread.
    pub owner: Option<Arc<str>>,
    pub priority: i32,
}

impl PodInfo {
    /// Works a pod out.
    pub fn new(pod: Arc<Pod>) -> Self {
        let spec = pod.spec.as_ref();
        let affinity = spec.and_then(|spec| spec.affinity.as_ref());
        let (near, far) = (
            affinity.and_then(|affinity| affinity.pod_affinity.as_ref()),
            affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref()),
        );
        let required = near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref());
        let anti = far.and_then(|far| far.required_during_scheduling_ignored_during_execution.as_ref());
        let liked = near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref());
        let disliked = far.and_then(|far| far.preferred_during_scheduling_ignored_during_execution.as_ref());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let terms = |terms: Option<&Vec<PodAffinityTerm>>| {
            terms.into_iter().flatten().map(|term| affinity_term(term, namespace)).collect()
        };
        let weighted = |terms: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<PreferredTerm> {
            let terms = terms.into_iter().flatten();
            let weigh = |weighted: &WeightedPodAffinityTerm| PreferredTerm {
                term: affinity_term(&weighted.pod_affinity_term, namespace),
                weight: i64::from(weighted.weight) * sign,
            };
            terms.map(weigh).collect()
        };
        let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Self {
            requests: resources::of_pod(&pod),
            scored: resources::scored(&pod),
            host_ports: spec.map(host_ports).unwrap_or_default(),
            affinity: terms(required),
            anti_affinity: terms(anti),
            preferred: [weighted(liked, 1), weighted(disliked, -1)].concat(),
            spread: constraints(spec),
            owner: owner.map(|owner| owner.uid.as_str().into()),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
            pod,
        }
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or("")
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("")
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or("")
    }

    pub fn labels(&self) -> &Option<BTreeMap<String, String>> {
        &self.pod.metadata.labels
    }

    pub fn spec(&self) -> Option<&PodSpec> {
        self.pod.spec.as_ref()
    }

    /// The node that the pod is bound to.
    pub fn node_name(&self) -> Option<&str> {
        self.spec()?.node_name.as_deref().filter(|name| !name.is_empty())
    }

    pub fn tolerations(&self) -> &[Toleration] {
        self.spec().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default()
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let wanted = ports.filter_map(|port| {
        let host_port = port.host_port.filter(|number| *number > 0)?;
        Some(HostPort {
            ip: port.host_ip.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: host_port,
        })
    });
    wanted.collect()
}

fn selector_of(selector: Option<&LabelSelector>) -> Selector {
    match selector {
        None => Selector::nothing(),
        selector => Selector::from_typed(selector).unwrap_or_else(|_| Selector::nothing()),
    }
}

/// `matchLabelKeys` and the like are in the selector since the pod was created.
fn affinity_term(term: &PodAffinityTerm, namespace: &str) -> AffinityTerm {
    let mut namespaces = term.namespaces.clone().unwrap_or_default();
    if namespaces.is_empty() && term.namespace_selector.is_none() {
        namespaces.push(namespace.to_owned());
    }
    AffinityTerm {
        selector: selector_of(term.label_selector.as_ref()),
        namespaces,
        namespace_selector: term.namespace_selector.as_ref().map(|selector| selector_of(Some(selector))),
        topology_key: term.topology_key.clone(),
    }
}

fn constraints(spec: Option<&PodSpec>) -> Vec<SpreadConstraint> {
    let all = spec.and_then(|spec| spec.topology_spread_constraints.as_ref()).into_iter().flatten();
    all.map(spread_constraint).collect()
}

fn spread_constraint(constraint: &TopologySpreadConstraint) -> SpreadConstraint {
    SpreadConstraint {
        max_skew: i64::from(constraint.max_skew),
        topology_key: constraint.topology_key.clone(),
        selector: selector_of(constraint.label_selector.as_ref()),
        is_required: constraint.when_unsatisfiable == "DoNotSchedule",
        min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
        honors_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
        honors_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
    }
}
