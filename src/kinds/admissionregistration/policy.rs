//! What the admission policies and their bindings share.

use k8s_openapi::api::admissionregistration::v1::{MatchResources, ParamKind, ParamRef};

use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, is_blank, str_of};
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{UNSET, selector};

/// Fills in the defaults of what a policy matches.
pub fn default_match(matching: &mut MatchResources) {
    text(&mut matching.match_policy, "Equivalent");
    matching.namespace_selector.get_or_insert_default();
    matching.object_selector.get_or_insert_default();
    for rule in matching.resource_rules.iter_mut().chain(&mut matching.exclude_resource_rules).flatten() {
        text(&mut rule.scope, "*");
    }
}

/// A policy must say what it matches.
pub fn matching(errors: &mut Errors, path: &Path, matching: Option<&MatchResources>) {
    match matching {
        None => errors.push(FieldError::required(path.clone(), "")),
        Some(matching) if is_blank(&matching.resource_rules) => {
            errors.push(FieldError::required(path.child("resourceRules"), ""));
        }
        Some(_) => {}
    }
}

/// The cell of a policy's parameters.
pub fn param_kind(kind: Option<&ParamKind>) -> String {
    kind.map_or_else(|| UNSET.to_owned(), |kind| format!("{}/{}", str_of(&kind.api_version), str_of(&kind.kind)))
}

/// The cell of a binding's parameters.
pub fn param_ref(param: Option<&ParamRef>) -> String {
    let Some(param) = param else { return UNSET.to_owned() };
    match (str_of(&param.name), str_of(&param.namespace)) {
        ("", _) => selector(param.selector.as_ref()),
        (name, "") => format!("*/{name}"),
        (name, namespace) => format!("{namespace}/{name}"),
    }
}
