//! The kinds: everything known about each resource, one file a kind, and [`KINDS`], the table that lists them.
//!
//! Routes, discovery, OpenAPI, RBAC names, printed columns, storage keys, watch, garbage collection and namespace clean-up derive
//! from this table. To add a kind: write its file (see [`typed::Definition`]) and its row here. Defaulting and validation follow
//! upstream's `pkg/apis/*/{v1/defaults.go,validation}`, preparation its `pkg/registry/*/strategy.go`, columns its
//! `pkg/printers/internalversion`.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::api::Kind;

pub mod admissionregistration;
pub mod apiextensions;
pub mod apiregistration;
pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod events;
pub mod flowcontrol;
pub mod metrics;
pub mod networking;
pub mod node;
pub mod policy;
pub mod rbac;
pub mod resource;
pub mod scheduling;
pub mod storage;
pub mod storagemigration;

pub(crate) mod check;
mod print;
pub mod typed;

/// A kind that is known at compile time.
pub trait BuiltIn: Kind {
    /// The kind as it is shared at run time.
    fn shared(&self) -> Arc<dyn Kind>;
}

impl<T: Kind + Copy> BuiltIn for T {
    fn shared(&self) -> Arc<dyn Kind> {
        Arc::new(*self)
    }
}

/// THE table: every built-in kind, sorted by group, version and plural.
pub static KINDS: &[&dyn BuiltIn] = &[
    &core::binding::BINDING,
    &core::component_status::COMPONENT_STATUS,
    &core::config_map::CONFIG_MAP,
    &core::endpoints::ENDPOINTS,
    &core::event::EVENT,
    &core::limit_range::LIMIT_RANGE,
    &core::namespace::NAMESPACE,
    &core::node::NODE,
    &core::persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    &core::persistent_volume::PERSISTENT_VOLUME,
    &core::pod::POD,
    &core::pod_template::POD_TEMPLATE,
    &core::replication_controller::REPLICATION_CONTROLLER,
    &core::resource_quota::RESOURCE_QUOTA,
    &core::secret::SECRET,
    &core::service_account::SERVICE_ACCOUNT,
    &core::service::SERVICE,
    &admissionregistration::mutating_admission_policy::MUTATING_ADMISSION_POLICY,
    &admissionregistration::mutating_admission_policy_binding::MUTATING_ADMISSION_POLICY_BINDING,
    &admissionregistration::mutating_webhook_configuration::MUTATING_WEBHOOK_CONFIGURATION,
    &admissionregistration::validating_admission_policy::VALIDATING_ADMISSION_POLICY,
    &admissionregistration::validating_admission_policy_binding::VALIDATING_ADMISSION_POLICY_BINDING,
    &admissionregistration::validating_webhook_configuration::VALIDATING_WEBHOOK_CONFIGURATION,
    &apiextensions::custom_resource_definition::CUSTOM_RESOURCE_DEFINITION,
    &apiregistration::api_service::API_SERVICE,
    &apps::controller_revision::CONTROLLER_REVISION,
    &apps::daemon_set::DAEMON_SET,
    &apps::deployment::DEPLOYMENT,
    &apps::replica_set::REPLICA_SET,
    &apps::stateful_set::STATEFUL_SET,
    &authentication::self_subject_review::SELF_SUBJECT_REVIEW,
    &authentication::token_review::TOKEN_REVIEW,
    &authorization::local_subject_access_review::LOCAL_SUBJECT_ACCESS_REVIEW,
    &authorization::self_subject_access_review::SELF_SUBJECT_ACCESS_REVIEW,
    &authorization::self_subject_rules_review::SELF_SUBJECT_RULES_REVIEW,
    &authorization::subject_access_review::SUBJECT_ACCESS_REVIEW,
    &autoscaling::v1::HORIZONTAL_POD_AUTOSCALER,
    &autoscaling::v2::HORIZONTAL_POD_AUTOSCALER,
    &batch::cron_job::CRON_JOB,
    &batch::job::JOB,
    &certificates::certificate_signing_request::CERTIFICATE_SIGNING_REQUEST,
    &certificates::cluster_trust_bundle::CLUSTER_TRUST_BUNDLE,
    &certificates::pod_certificate_request::POD_CERTIFICATE_REQUEST,
    &coordination::lease::LEASE,
    &discovery::endpoint_slice::ENDPOINT_SLICE,
    &events::event::EVENT,
    &flowcontrol::flow_schema::FLOW_SCHEMA,
    &flowcontrol::priority_level_configuration::PRIORITY_LEVEL_CONFIGURATION,
    &metrics::NODE_METRICS,
    &metrics::POD_METRICS,
    &networking::ingress_class::INGRESS_CLASS,
    &networking::ingress::INGRESS,
    &networking::ip_address::IP_ADDRESS,
    &networking::network_policy::NETWORK_POLICY,
    &networking::service_cidr::SERVICE_CIDR,
    &node::runtime_class::RUNTIME_CLASS,
    &policy::pod_disruption_budget::POD_DISRUPTION_BUDGET,
    &rbac::cluster_role_binding::CLUSTER_ROLE_BINDING,
    &rbac::cluster_role::CLUSTER_ROLE,
    &rbac::role_binding::ROLE_BINDING,
    &rbac::role::ROLE,
    &resource::device_class::DEVICE_CLASS,
    &resource::resource_claim::RESOURCE_CLAIM,
    &resource::resource_claim_template::RESOURCE_CLAIM_TEMPLATE,
    &resource::resource_slice::RESOURCE_SLICE,
    &scheduling::priority_class::PRIORITY_CLASS,
    &storage::csi_driver::CSI_DRIVER,
    &storage::csi_node::CSI_NODE,
    &storage::csi_storage_capacity::CSI_STORAGE_CAPACITY,
    &storage::storage_class::STORAGE_CLASS,
    &storage::volume_attachment::VOLUME_ATTACHMENT,
    &storage::volume_attributes_class::VOLUME_ATTRIBUTES_CLASS,
    &storagemigration::storage_version_migration::STORAGE_VERSION_MIGRATION,
];

type Key = (&'static str, &'static str, &'static str);

#[derive(Clone, Default)]
struct Index {
    by_resource: HashMap<Key, Arc<dyn Kind>>,
    by_kind: HashMap<Key, Arc<dyn Kind>>,
}

impl Index {
    fn add(&mut self, kind: Arc<dyn Kind>) {
        let names = *kind.names();
        self.by_resource.insert((names.group, names.version, names.plural), kind.clone());
        self.by_kind.insert((names.group, names.version, names.kind), kind);
    }

    fn remove(&mut self, group: &str, version: &str, plural: &str) {
        fn take(map: &mut HashMap<Key, Arc<dyn Kind>>, gone: impl Fn(&dyn Kind) -> bool) {
            map.retain(|_, kind| !gone(kind.as_ref()));
        }
        let gone = |kind: &dyn Kind| {
            let names = kind.names();
            (names.group, names.version, names.plural) == (group, version, plural)
        };
        take(&mut self.by_resource, gone);
        take(&mut self.by_kind, gone);
    }
}

/// The kinds that are served now: the built-in ones and those that CustomResourceDefinitions add. Readers never wait.
pub struct Kinds {
    index: ArcSwap<Index>,
}

impl Kinds {
    /// The kinds of [`KINDS`].
    pub fn builtin() -> Self {
        let mut index = Index::default();
        for kind in KINDS {
            index.add(kind.shared());
        }
        Self { index: ArcSwap::from_pointee(index) }
    }

    /// The kind whose objects stand under `/apis/{group}/{version}/.../{plural}` ("" is the core group).
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<dyn Kind>> {
        lookup(&self.index.load().by_resource, (group, version, plural))
    }

    /// The kind that an object's `apiVersion` and `kind` name.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<dyn Kind>> {
        lookup(&self.index.load().by_kind, (group, version, kind))
    }

    /// All kinds, sorted by group, version and plural.
    pub fn iter(&self) -> std::vec::IntoIter<Arc<dyn Kind>> {
        let mut all: Vec<_> = self.index.load().by_resource.values().cloned().collect();
        all.sort_by_key(|kind| {
            let names = kind.names();
            (names.group, names.version, names.plural)
        });
        all.into_iter()
    }

    /// Adds a kind, or replaces the one of the same group, version and plural.
    pub fn add(&self, kind: &Arc<dyn Kind>) {
        self.index.rcu(|index| {
            let mut index = Index::clone(index);
            index.add(kind.clone());
            index
        });
    }

    /// Removes a kind, if it is there.
    pub fn remove(&self, group: &str, version: &str, plural: &str) {
        self.index.rcu(|index| {
            let mut index = Index::clone(index);
            index.remove(group, version, plural);
            index
        });
    }
}

impl Default for Kinds {
    fn default() -> Self {
        Self::builtin()
    }
}

fn lookup<'a>(
    map: &HashMap<(&'a str, &'a str, &'a str), Arc<dyn Kind>>,
    key: (&'a str, &'a str, &'a str),
) -> Option<Arc<dyn Kind>> {
    map.get(&key).cloned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::api::Object;
    use crate::api::kind::{Scope, Verb};

    #[test]
    fn every_row_is_whole() {
        let mut resources = HashSet::new();
        let mut kinds = HashSet::new();
        let mut last = None;
        for kind in KINDS {
            let names = *kind.names();
            let key = (names.group, names.version, names.plural);
            assert!(last < Some(key), "{key:?} is out of order");
            last = Some(key);
            assert!(resources.insert(key), "{key:?} stands twice");
            assert!(kinds.insert((names.group, names.version, names.kind)), "{key:?}: the kind stands twice");
            assert_eq!(names.singular, names.kind.to_lowercase(), "{key:?}");
            assert!(kind.bucket().ends_with(&format!("/{}", names.plural)), "{key:?}: bucket {}", kind.bucket());
            let schema = kind.schema().map(|schema| schema.ends_with(&format!(".{}.{}", names.version, names.kind)));
            assert!(schema.unwrap_or(names.group == metrics::GROUP), "{key:?}");
            let mut subresources: Vec<_> = kind.subresources().iter().map(|sub| sub.as_str()).collect();
            subresources.sort_unstable();
            subresources.dedup();
            assert_eq!(subresources.len(), kind.subresources().len(), "{key:?}");
        }
    }

    #[test]
    fn every_row_copes_with_an_empty_object() {
        for kind in KINDS {
            let names = kind.names();
            let mut object = Object::default();
            object.set(&["apiVersion"], names.api_version());
            object.set(&["kind"], names.kind);
            object.set(&["metadata"], json!({"name": "a", "creationTimestamp": "2024-01-01T00:00:00Z"}));
            kind.default(&mut object);
            assert_eq!((object.name(), object.creation_timestamp().is_some()), ("a", true), "{}", names.kind);
            let defaulted = object.clone();
            kind.default(&mut object);
            assert_eq!(object, defaulted, "defaulting {} twice differs", names.kind);
            kind.prepare_create(&mut object);
            kind.prepare_update(&mut object, &defaulted, None);
            let _errors = (kind.validate(&object), kind.validate_update(&object, &defaulted, None), kind.warnings(&object));
            let now: Timestamp = "2024-01-01T00:05:00Z".parse().unwrap();
            assert_eq!(kind.row(&object, now).len(), kind.columns().len(), "{}", names.kind);
            assert_eq!(kind.field_values(&object).len(), kind.selectable_fields().len(), "{}", names.kind);
            assert_eq!(object.api_version(), names.api_version());
        }
    }

    #[test]
    fn look_ups_find_rows_and_what_was_added() {
        let kinds = Kinds::builtin();
        assert_eq!(kinds.iter().count(), KINDS.len());
        let deployment = kinds.find("apps", "v1", "deployments").unwrap();
        assert_eq!((deployment.names().kind, deployment.names().scope), ("Deployment", Scope::Namespaced));
        assert_eq!(kinds.find_kind("", "v1", "Pod").unwrap().names().plural, "pods");
        assert!(kinds.find("", "v1", "deployments").is_none());
        kinds.remove("apps", "v1", "deployments");
        assert!(kinds.find("apps", "v1", "deployments").is_none() && kinds.find_kind("apps", "v1", "Deployment").is_none());
        kinds.add(&deployment);
        assert!(kinds.find("apps", "v1", "deployments").is_some());
        assert_eq!(kinds.find("authorization.k8s.io", "v1", "subjectaccessreviews").unwrap().verbs(), [Verb::Create]);
    }
}
