//! Update: replace an object, a PUT.

use super::change::Trust;
use super::{Outcome, Registry, WriteRequest, change::invalid};
use crate::api::field::{FieldError, Path};
use crate::api::{ApiError, Kind, Object};

/// Resources that a PUT creates when they are not there (upstream's `AllowCreateOnUpdate`).
const CREATED_ON_UPDATE: &[(&str, &str)] = &[
    ("", "endpoints"),
    ("", "events"),
    ("", "limitranges"),
    ("", "services"),
    ("coordination.k8s.io", "leases"),
    ("events.k8s.io", "events"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "roles"),
];

/// Groups whose objects can't be replaced without a `resourceVersion` (upstream's `AllowUnconditionalUpdate` is false).
const CONDITIONAL: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io", ""),
    ("apiextensions.k8s.io", ""),
    ("apiregistration.k8s.io", ""),
    ("coordination.k8s.io", "leases"),
    ("flowcontrol.apiserver.k8s.io", ""),
    ("node.k8s.io", "runtimeclasses"),
    ("policy", "poddisruptionbudgets"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "volumeattachments"),
];

impl Registry {
    /// Replaces an object, or the part of it that the request's subresource covers.
    ///
    /// # Errors
    /// 404, 409 of optimistic locking, 422, 403 of admission.
    pub async fn update(&self, request: &WriteRequest, object: Object) -> Result<Outcome, ApiError> {
        let kind = &*request.kind;
        if object.resource_version().is_empty() && !allows_unconditional_update(kind) {
            let path = Path::new("metadata").child("resourceVersion");
            let mut error = FieldError::invalid(path, 0, "must be specified for an update");
            error.value = serde_json::Value::from(0);
            invalid(kind, object.name(), &[error])?;
        }
        let fallback = (request.subresource.is_none() && creates_on_update(kind)).then(|| object.clone());
        match self.change(request, Trust::Client, |_, _| Ok(object.clone())).await {
            Err(error) if error.is_not_found() && error.details.kind == kind.names().plural => match fallback {
                Some(object) if object.resource_version().is_empty() => match &request.create_refused {
                    Some(refused) => Err(refused.clone()),
                    None => self.create(request, object).await,
                },
                _ => Err(error),
            },
            outcome => outcome,
        }
    }
}

fn is_listed(table: &[(&str, &str)], kind: &dyn Kind) -> bool {
    let names = kind.names();
    table.iter().any(|(group, plural)| *group == names.group && (plural.is_empty() || *plural == names.plural))
}

fn creates_on_update(kind: &dyn Kind) -> bool {
    is_listed(CREATED_ON_UPDATE, kind)
}

fn allows_unconditional_update(kind: &dyn Kind) -> bool {
    !is_listed(CONDITIONAL, kind)
}
