//! What roles share, and what bindings share (upstream `pkg/apis/rbac/validation`).

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef, Subject};

use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, immutable, is_blank, one_of, required, str_of};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a rule; only cluster roles may name paths that are no resources.
pub fn rule(errors: &mut Errors, path: &Path, rule: &PolicyRule, is_namespaced: bool) {
    if rule.verbs.is_empty() {
        errors.push(FieldError::required(path.child("verbs"), "verbs must contain at least one value"));
    }
    let (groups, resources) = (is_blank(&rule.api_groups), is_blank(&rule.resources));
    if !is_blank(&rule.non_resource_urls) {
        let at = path.child("nonResourceURLs");
        let urls = rule.non_resource_urls.clone().unwrap_or_default();
        if is_namespaced {
            errors.push(FieldError::invalid(at.clone(), urls.clone(), "namespaced rules cannot apply to non-resource URLs"));
        }
        if !groups || !resources || !is_blank(&rule.resource_names) {
            errors.push(FieldError::invalid(at, urls, "rules cannot apply to both regular resources and non-resource URLs"));
        }
        return;
    }
    if groups {
        errors.push(FieldError::required(path.child("apiGroups"), "resource rules must supply at least one api group"));
    }
    if resources {
        errors.push(FieldError::required(path.child("resources"), "resource rules must supply at least one resource"));
    }
}

/// Fills in the groups of what a binding names.
pub fn default_binding(role: &mut RoleRef, subjects: Option<&mut Vec<Subject>>) {
    if str_of(&role.api_group).is_empty() {
        role.api_group = Some(GROUP.to_owned());
    }
    for subject in subjects.into_iter().flatten() {
        let is_set = !str_of(&subject.api_group).is_empty();
        if !is_set && matches!(subject.kind.as_str(), "Group" | "User") {
            subject.api_group = Some(GROUP.to_owned());
        }
    }
}

/// Checks what a binding binds; `kinds` are the kinds of role that it may name.
pub fn binding(errors: &mut Errors, role: &RoleRef, subjects: Option<&Vec<Subject>>, kinds: &[&str], is_namespaced: bool) {
    let path = Path::new("roleRef");
    one_of(errors, &path.child("apiGroup"), str_of(&role.api_group), &[GROUP]);
    one_of(errors, &path.child("kind"), &role.kind, kinds);
    if required(errors, &path.child("name"), &role.name) {
        crate::kinds::check::rule(errors, &path.child("name"), &role.name, crate::api::names::path_segment);
    }
    for (index, each) in subjects.into_iter().flatten().enumerate() {
        subject(errors, &Path::new("subjects").index(index), each, is_namespaced);
    }
}

fn subject(errors: &mut Errors, path: &Path, subject: &Subject, is_namespaced: bool) {
    required(errors, &path.child("name"), &subject.name);
    let group = str_of(&subject.api_group);
    match subject.kind.as_str() {
        "ServiceAccount" => {
            if !subject.name.is_empty() {
                crate::kinds::check::rule(errors, &path.child("name"), &subject.name, crate::api::names::dns1123_subdomain);
            }
            one_of(errors, &path.child("apiGroup"), group, &[""]);
            if !is_namespaced {
                required(errors, &path.child("namespace"), str_of(&subject.namespace));
            }
        }
        "Group" | "User" => one_of(errors, &path.child("apiGroup"), group, &[GROUP]),
        other => errors.push(FieldError::not_supported(path.child("kind"), other, &["Group", "ServiceAccount", "User"])),
    }
}

/// A binding's role does not change: it would give its subjects other rights under the same name.
pub fn same_role(errors: &mut Errors, new: &RoleRef, old: &RoleRef) {
    let before = errors.len();
    immutable(errors, &Path::new("roleRef"), new, old);
    for error in &mut errors[before..] {
        error.detail = "cannot change roleRef".to_owned();
    }
}

/// The cells of a binding's subjects: users, groups, service accounts.
pub fn subjects(subjects: Option<&Vec<Subject>>) -> [String; 3] {
    let of = |kind: &str| {
        let texts = subjects.into_iter().flatten().filter(|subject| subject.kind == kind).map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", str_of(&subject.namespace), subject.name),
            _ => subject.name.clone(),
        });
        texts.collect::<Vec<String>>().join(", ")
    };
    [of("User"), of("Group"), of("ServiceAccount")]
}
