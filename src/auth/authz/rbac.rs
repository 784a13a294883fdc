//! The RBAC objects, decoded once and indexed by subject. Worked out anew when one of their buckets was written to; a role or
//! binding that has not changed is not decoded again.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject};
use parking_lot::Mutex;

use crate::auth::{UserInfo, decode};
use crate::kinds::rbac;
use crate::store::{Entry, Mark, Revision, Snapshot};

const GROUP: &str = "rbac.authorization.k8s.io";

/// What one binding gives to one subject.
#[derive(Debug)]
pub struct Grant {
    /// `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    pub source: String,
    /// The rules of the role, or why there are none.
    pub rules: Result<Arc<[PolicyRule]>, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    User(String),
    Group(String),
}

type BySubject = HashMap<Who, Vec<Grant>>;

/// All policies at one moment.
#[derive(Default)]
pub(super) struct Policies {
    cluster_roles: HashMap<String, Arc<[PolicyRule]>>,
    /// By `namespace/name`.
    roles: HashMap<String, Arc<[PolicyRule]>>,
    cluster: BySubject,
    namespaced: HashMap<String, BySubject>,
}

/// The policies, and the state of the store that they are of.
#[derive(Default)]
pub(super) struct Cache(Mutex<Cached>);

#[derive(Default)]
struct Cached {
    marks: Vec<Mark>,
    policies: Arc<Policies>,
    decoded: Decoded,
}

/// Decoded objects by key.
#[derive(Default)]
struct Decoded {
    cluster_roles: Objects<ClusterRole>,
    roles: Objects<Role>,
    cluster_role_bindings: Objects<ClusterRoleBinding>,
    role_bindings: Objects<RoleBinding>,
}

type Objects<K> = HashMap<Arc<str>, (Revision, Option<Arc<K>>)>;

const fn buckets() -> [&'static str; 4] {
    [
        rbac::cluster_role::CLUSTER_ROLE.bucket,
        rbac::role::ROLE.bucket,
        rbac::cluster_role_binding::CLUSTER_ROLE_BINDING.bucket,
        rbac::role_binding::ROLE_BINDING.bucket,
    ]
}

impl Cache {
    /// The policies of a snapshot.
    pub(super) fn current(&self, snapshot: &Snapshot) -> Arc<Policies> {
        let marks: Vec<Mark> = buckets().iter().map(|bucket| snapshot.mark(bucket)).collect();
        let mut cached = self.0.lock();
        if cached.marks != marks {
            cached.decoded.refresh(snapshot);
            cached.policies = Arc::new(Policies::of(&cached.decoded));
            cached.marks = marks;
        }
        Arc::clone(&cached.policies)
    }
}

impl Decoded {
    fn refresh(&mut self, snapshot: &Snapshot) {
        let [cluster_roles, roles, cluster_role_bindings, role_bindings] = buckets().map(|bucket| format!("{bucket}/"));
        refresh(&mut self.cluster_roles, snapshot.range(&cluster_roles, None));
        refresh(&mut self.roles, snapshot.range(&roles, None));
        refresh(&mut self.cluster_role_bindings, snapshot.range(&cluster_role_bindings, None));
        refresh(&mut self.role_bindings, snapshot.range(&role_bindings, None));
    }
}

fn refresh<'a, K: serde::de::DeserializeOwned>(objects: &mut Objects<K>, entries: impl Iterator<Item = &'a Arc<Entry>>) {
    let old = std::mem::take(objects);
    *objects = entries
        .map(|entry| {
            let kept = old.get(&entry.key).filter(|(revision, _)| *revision == entry.revision).map(|(_, object)| object.clone());
            let object = kept.unwrap_or_else(|| decode(entry).map(Arc::new));
            (Arc::clone(&entry.key), (entry.revision, object))
        })
        .collect();
}

fn objects<K>(all: &Objects<K>) -> impl Iterator<Item = &K> {
    all.values().filter_map(|(_, object)| object.as_deref())
}

fn rules(rules: Option<&Vec<PolicyRule>>) -> Arc<[PolicyRule]> {
    rules.map_or(&[][..], Vec::as_slice).into()
}

fn text(value: Option<&String>) -> &str {
    value.map_or("", String::as_str)
}

impl Policies {
    fn of(decoded: &Decoded) -> Self {
        let mut policies = Self::default();
        for role in objects(&decoded.cluster_roles) {
            policies.cluster_roles.insert(text(role.metadata.name.as_ref()).to_owned(), rules(role.rules.as_ref()));
        }
        for role in objects(&decoded.roles) {
            let meta = &role.metadata;
            let key = format!("{}/{}", text(meta.namespace.as_ref()), text(meta.name.as_ref()));
            policies.roles.insert(key, rules(role.rules.as_ref()));
        }
        for binding in objects(&decoded.cluster_role_bindings) {
            let name = format!("ClusterRoleBinding {:?}", text(binding.metadata.name.as_ref()));
            for (who, grant) in policies.grants_of(&name, "", &binding.role_ref, binding.subjects.as_ref()) {
                policies.cluster.entry(who).or_default().push(grant);
            }
        }
        for binding in objects(&decoded.role_bindings) {
            let namespace = text(binding.metadata.namespace.as_ref());
            let name = format!("RoleBinding \"{}/{namespace}\"", text(binding.metadata.name.as_ref()));
            let grants = policies.grants_of(&name, namespace, &binding.role_ref, binding.subjects.as_ref());
            let by_subject = policies.namespaced.entry(namespace.to_owned()).or_default();
            for (who, grant) in grants {
                by_subject.entry(who).or_default().push(grant);
            }
        }
        policies
    }

    fn grants_of(&self, binding: &str, namespace: &str, role: &RoleRef, to: Option<&Vec<Subject>>) -> Vec<(Who, Grant)> {
        let rules = if role.api_group.as_deref().is_some_and(|group| group != GROUP && !group.is_empty()) {
            Err(format!("unsupported role reference group: {:?}", text(role.api_group.as_ref())))
        } else {
            self.role(&role.kind, namespace, &role.name)
        };
        let grant = |subject: &Subject| {
            let (who, shown) = match subject.kind.as_str() {
                "User" => (Who::User(subject.name.clone()), format!("User {:?}", subject.name)),
                "Group" => (Who::Group(subject.name.clone()), format!("Group {:?}", subject.name)),
                "ServiceAccount" => {
                    // A subject of a RoleBinding without a namespace names nobody: upstream's validation asks for it.
                    let of = text(subject.namespace.as_ref());
                    let user = format!("system:serviceaccount:{of}:{}", subject.name);
                    (Who::User(user), format!("ServiceAccount \"{}/{of}\"", subject.name))
                }
                _ => return None,
            };
            let source = format!("{binding} of {} {:?} to {shown}", role.kind, role.name);
            Some((who, Grant { source, rules: rules.clone() }))
        };
        to.into_iter().flatten().filter_map(grant).collect()
    }

    /// The rules of a role.
    pub(super) fn role(&self, kind: &str, namespace: &str, name: &str) -> Result<Arc<[PolicyRule]>, String> {
        let found = match kind {
            "ClusterRole" => self.cluster_roles.get(name),
            "Role" => self.roles.get(&format!("{namespace}/{name}")),
            other => return Err(format!("unsupported role reference kind: {other:?}")),
        };
        found.cloned().ok_or_else(|| format!("{}.{GROUP} {name:?} not found", kind.to_lowercase()))
    }

    /// Everything bound to a user or its groups: for the whole cluster, and, unless it is "", in the namespace.
    pub(super) fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &str) -> impl Iterator<Item = &'a Grant> {
        let maps = [Some(&self.cluster), self.namespaced.get(namespace).filter(|_| !namespace.is_empty())];
        let mut who = vec![Who::User(user.name.clone())];
        who.extend(user.groups.iter().cloned().map(Who::Group));
        let found: Vec<&Grant> =
            maps.into_iter().flatten().flat_map(|map| who.iter().filter_map(|who| map.get(who)).flatten()).collect();
        found.into_iter()
    }
}
