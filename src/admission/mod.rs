//! Admission: an ordered chain of plugins that may change an object before it is validated, and refuse it after.
//!
//! A plugin is one file and one row of [`PLUGINS`], in upstream's order (`pkg/kubeapiserver/options/plugins.go`).

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use crate::api::{ApiError, Object};
use crate::auth::Authorizer;
use crate::registry::{Admit, Attributes, Reader};

mod certificate_requestor;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod rbac_escalation;
mod service_account;
mod taint_nodes;

pub use default_toleration_seconds::TolerationSeconds;

/// One admission plugin. The default of each step lets everything through.
#[async_trait]
trait Plugin: Send + Sync {
    /// The name, as `--enable-admission-plugins` has it.
    fn name(&self) -> &'static str;

    /// May change the object. Not called on delete.
    async fn mutate(&self, _context: &mut Context<'_>, _object: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Sees the object as it will be stored; `None` on delete.
    async fn validate(
        &self,
        _context: &mut Context<'_>,
        _object: Option<&Object>,
        _old: Option<&Object>,
    ) -> Result<(), ApiError> {
        Ok(())
    }
}

/// THE table: all plugins, in the order they are asked.
static PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes::TaintNodesByCondition,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &default_storage_class::DefaultStorageClass,
    &default_ingress_class::DefaultIngressClass,
    &rbac_escalation::RbacEscalation,
    &certificate_requestor::CertificateRequestor,
];

/// What a plugin is given beside the object.
struct Context<'a> {
    reader: &'a Reader,
    authorizer: &'a Authorizer,
    attributes: &'a Attributes<'a>,
    toleration_seconds: TolerationSeconds,
    #[expect(dead_code, reason = "the plugins that warn come with their kinds")]
    warnings: &'a mut Vec<String>,
}

impl Context<'_> {
    /// Whether this is the resource itself, not a subresource, of that kind of the core group.
    fn is_core(&self, kind: &str) -> bool {
        let names = self.attributes.kind.names();
        names.group.is_empty() && names.kind == kind && self.attributes.subresource.is_none()
    }

    /// 403 in upstream's form: `pods "web" is forbidden: why`.
    fn forbidden(&self, why: impl std::fmt::Display) -> ApiError {
        ApiError::forbidden(&self.attributes.kind.names().group_resource(), self.attributes.name, why)
    }
}

/// The chain of all plugins.
pub struct Chain {
    reader: Reader,
    authorizer: Arc<Authorizer>,
    toleration_seconds: TolerationSeconds,
}

impl Chain {
    /// A chain whose plugins look up other objects with `reader`, and ask `authorizer` what a user may do.
    pub fn new(reader: Reader, authorizer: Arc<Authorizer>) -> Self {
        Self { reader, authorizer, toleration_seconds: TolerationSeconds::default() }
    }

    /// The same with other times for which pods stay on lost nodes.
    #[must_use]
    pub fn with_toleration_seconds(self, toleration_seconds: TolerationSeconds) -> Self {
        Self { toleration_seconds, ..self }
    }

    fn context<'a>(&'a self, attributes: &'a Attributes<'a>, warnings: &'a mut Vec<String>) -> Context<'a> {
        Context {
            reader: &self.reader,
            authorizer: &self.authorizer,
            attributes,
            toleration_seconds: self.toleration_seconds,
            warnings,
        }
    }
}

#[async_trait]
impl Admit for Chain {
    async fn mutate(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Object,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let mut context = self.context(attributes, warnings);
        for plugin in PLUGINS {
            plugin.mutate(&mut context, object, old).await.inspect_err(|error| refused(*plugin, error))?;
        }
        Ok(())
    }

    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let mut context = self.context(attributes, warnings);
        for plugin in PLUGINS {
            plugin.validate(&mut context, object, old).await.inspect_err(|error| refused(*plugin, error))?;
        }
        Ok(())
    }
}

fn refused(plugin: &dyn Plugin, error: &ApiError) {
    tracing::debug!(plugin = plugin.name(), %error, "admission refused");
}

/// The containers of a pod of all sorts, to be changed.
fn containers_mut(pod: &mut Object) -> impl Iterator<Item = &mut Value> {
    let spec = pod.0.get_mut("spec").and_then(Value::as_object_mut);
    spec.into_iter()
        .flat_map(|spec| spec.iter_mut())
        .filter(|(field, _)| ["containers", "initContainers", "ephemeralContainers"].contains(&field.as_str()))
        .filter_map(|(_, list)| list.as_array_mut())
        .flatten()
}

/// The list at a path, made if it is not there.
fn list_mut<'a>(map: &'a mut Value, field: &str) -> Option<&'a mut Vec<Value>> {
    let slot = map.as_object_mut()?.entry(field.to_owned()).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}

#[cfg(test)]
mod tests;
