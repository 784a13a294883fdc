//! RuntimeClass: how the containers of a pod are run.

use k8s_openapi::api::node::v1::RuntimeClass;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{immutable, required_rule};
use crate::kinds::core::pod_spec::defaults::quantities;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static RUNTIME_CLASS: Definition<RuntimeClass> = Definition {
    columns: &[Column::NAME, Column::text("Handler"), Column::AGE],
    row: Some(|class, now| vec![name(&class.metadata), class.handler.clone().into(), age(&class.metadata, now)]),
    default: Some(|class| {
        if let Some(overhead) = &mut class.overhead {
            quantities(&mut overhead.pod_fixed);
        }
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster("io.k8s.api.node.v1.RuntimeClass", "node.k8s.io/runtimeclasses", "runtimeclass")
};

fn validate(class: &RuntimeClass) -> Vec<FieldError> {
    let mut errors = Vec::new();
    required_rule(&mut errors, &Path::new("handler"), &class.handler, names::dns1123_label);
    errors
}

fn validate_update(new: &RuntimeClass, old: &RuntimeClass, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("handler"), &new.handler, &old.handler);
    errors
}
