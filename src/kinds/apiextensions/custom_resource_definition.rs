//! CustomResourceDefinition: a kind that a user adds.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionSpec,
};
use serde_json::json;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{Errors, immutable, required, required_one_of, required_rule, str_of, unique};
use crate::kinds::core::pod_spec::defaults::{text, value};
use crate::kinds::print::{CREATED_AT, created_at, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static CUSTOM_RESOURCE_DEFINITION: Definition<CustomResourceDefinition> = Definition {
    subresources: &[Subresource::Status],
    columns: &[Column::NAME, CREATED_AT],
    row: Some(|definition, _now| vec![name(&definition.metadata), created_at(&definition.metadata)]),
    default: Some(default),
    initial_status: Some(|| json!({"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []})),
    prepare_create: Some(|definition| {
        let stored = definition.spec.versions.iter().find(|version| version.storage).map(|version| version.name.clone());
        definition.status.get_or_insert_default().stored_versions = Some(stored.into_iter().collect());
    }),
    prepare_update: Some(|new, _old, subresource| {
        if subresource.is_some() {
            return;
        }
        let stored = new.spec.versions.iter().find(|version| version.storage).map(|version| version.name.clone());
        let versions = new.status.get_or_insert_default().stored_versions.get_or_insert_default();
        if let Some(stored) = stored.filter(|stored| !versions.contains(stored)) {
            versions.push(stored);
        }
    }),
    validate: Some(validate),
    validate_update: Some(validate_update),
    ..Definition::cluster(
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        "apiextensions.k8s.io/customresourcedefinitions",
        "customresourcedefinition",
    )
    .short(&["crd", "crds"])
    .in_api_extensions()
};

fn default(definition: &mut CustomResourceDefinition) {
    let spec = &mut definition.spec;
    let kind = spec.names.kind.clone();
    text(&mut spec.names.singular, &kind.to_lowercase());
    text(&mut spec.names.list_kind, &format!("{kind}List"));
    let none = || CustomResourceConversion { strategy: "None".to_owned(), webhook: None };
    let conversion = spec.conversion.get_or_insert_with(none);
    let client = conversion.webhook.as_mut().and_then(|webhook| webhook.client_config.as_mut());
    if let Some(service) = client.and_then(|client| client.service.as_mut()) {
        value(&mut service.port, 443);
    }
}

fn validate(definition: &CustomResourceDefinition) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &definition.spec;
    let name = definition.metadata.name.as_deref().unwrap_or("");
    let expected = format!("{}.{}", spec.names.plural, spec.group);
    if name != expected {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid(Path::new("metadata").child("name"), name, why));
    }
    self::spec(&mut errors, &Path::new("spec"), spec);
    errors
}

fn spec(errors: &mut Errors, path: &Path, spec: &CustomResourceDefinitionSpec) {
    let group = path.child("group");
    required_rule(errors, &group, &spec.group, names::dns1123_subdomain);
    if !spec.group.is_empty() && !spec.group.contains('.') {
        errors.push(FieldError::invalid(group, spec.group.as_str(), "should be a domain with at least one dot"));
    }
    required_one_of(errors, &path.child("scope"), &spec.scope, &["Cluster", "Namespaced"]);
    let at = path.child("versions");
    let mut seen = std::collections::HashSet::new();
    for (index, version) in spec.versions.iter().enumerate() {
        let path = at.index(index);
        required_rule(errors, &path.child("name"), &version.name, names::dns1035_label);
        unique(errors, &path.child("name"), &mut seen, &version.name);
        if version.schema.as_ref().is_none_or(|schema| schema.open_api_v3_schema.is_none()) {
            errors.push(FieldError::required(path.child("schema").child("openAPIV3Schema"), "schemas are required"));
        }
    }
    if spec.versions.iter().filter(|version| version.storage).count() != 1 {
        let value = serde_json::to_value(&spec.versions).unwrap_or_default();
        errors.push(FieldError::invalid(at, value, "must have exactly one version marked as storage version"));
    }
    let at = path.child("names");
    let lower = |text: &str| names::dns1035_label(&text.to_lowercase());
    required_rule(errors, &at.child("plural"), &spec.names.plural, names::dns1035_label);
    required_rule(errors, &at.child("singular"), str_of(&spec.names.singular), names::dns1035_label);
    required_rule(errors, &at.child("kind"), &spec.names.kind, lower);
    required_rule(errors, &at.child("listKind"), str_of(&spec.names.list_kind), lower);
    if !spec.names.kind.is_empty() && spec.names.list_kind.as_ref() == Some(&spec.names.kind) {
        let why = "kind and listKind may not be the same";
        errors.push(FieldError::invalid(at.child("listKind"), spec.names.kind.as_str(), why));
    }
    for (index, short) in spec.names.short_names.iter().flatten().enumerate() {
        required_rule(errors, &at.child("shortNames").index(index), short, names::dns1035_label);
    }
    let conversion = spec.conversion.clone().unwrap_or_default();
    let at = path.child("conversion");
    required_one_of(errors, &at.child("strategy"), &conversion.strategy, &["None", "Webhook"]);
    if conversion.strategy == "Webhook" && conversion.webhook.is_none() {
        required(errors, &at.child("webhookClientConfig"), "");
    }
}

fn validate_update(
    new: &CustomResourceDefinition,
    old: &CustomResourceDefinition,
    subresource: Option<Subresource>,
) -> Vec<FieldError> {
    if subresource.is_some() {
        return Vec::new();
    }
    let mut errors = validate(new);
    let path = Path::new("spec");
    let conditions = old.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_established = conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True");
    if is_established {
        immutable(&mut errors, &path.child("scope"), &new.spec.scope, &old.spec.scope);
        immutable(&mut errors, &path.child("names").child("kind"), &new.spec.names.kind, &old.spec.names.kind);
    }
    immutable(&mut errors, &path.child("group"), &new.spec.group, &old.spec.group);
    immutable(&mut errors, &path.child("names").child("plural"), &new.spec.names.plural, &old.spec.names.plural);
    errors
}
