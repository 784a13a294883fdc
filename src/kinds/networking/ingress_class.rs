//! IngressClass: who serves an Ingress.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::IngressClass;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{immutable, required, str_of};
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{NONE, age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static INGRESS_CLASS: Definition<IngressClass> = Definition {
    columns: &[Column::NAME, Column::text("Controller"), Column::text("Parameters"), Column::AGE],
    row: Some(row),
    default: Some(|class| {
        if let Some(parameters) = class.spec.as_mut().and_then(|spec| spec.parameters.as_mut()) {
            text(&mut parameters.scope, "Cluster");
        }
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    generation: Some(true),
    ..Definition::cluster("io.k8s.api.networking.v1.IngressClass", "networking.k8s.io/ingressclasses", "ingressclass")
};

fn validate(class: &IngressClass) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = class.spec.clone().unwrap_or_default();
    required(&mut errors, &path.child("controller"), str_of(&spec.controller));
    if let Some(parameters) = &spec.parameters {
        required(&mut errors, &path.child("parameters").child("kind"), &parameters.kind);
        required(&mut errors, &path.child("parameters").child("name"), &parameters.name);
    }
    errors
}

fn validate_update(new: &IngressClass, old: &IngressClass, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    let controller = |class: &IngressClass| class.spec.as_ref().and_then(|spec| spec.controller.clone());
    immutable(&mut errors, &Path::new("spec").child("controller"), &controller(new), &controller(old));
    errors
}

fn row(class: &IngressClass, now: Timestamp) -> Vec<Value> {
    let spec = class.spec.clone().unwrap_or_default();
    let parameters = spec.parameters.map_or_else(
        || NONE.to_owned(),
        |parameters| match str_of(&parameters.api_group) {
            "" => format!("{}/{}", parameters.kind, parameters.name),
            group => format!("{}.{group}/{}", parameters.kind, parameters.name),
        },
    );
    vec![name(&class.metadata), spec.controller.unwrap_or_default().into(), parameters.into(), age(&class.metadata, now)]
}
