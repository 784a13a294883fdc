//! What the webhooks of both configurations share (upstream `pkg/apis/admissionregistration`).

use k8s_openapi::api::admissionregistration::v1::{RuleWithOperations, WebhookClientConfig};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::kinds::check::{Errors, is_blank, label_selector, one_of, port, required, required_one_of, str_of};
use crate::kinds::core::pod_spec::defaults::{text, value};

const TIMEOUT_SECONDS: i32 = 10;
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

/// The fields of a webhook that are checked.
pub struct Hook<'a> {
    pub name: &'a str,
    pub versions: &'a [String],
    pub side_effects: &'a str,
    pub failure_policy: Option<&'a str>,
    pub match_policy: Option<&'a str>,
    pub timeout_seconds: Option<i32>,
    pub client: &'a WebhookClientConfig,
    pub rules: &'a [RuleWithOperations],
    pub selectors: [Option<&'a LabelSelector>; 2],
}

/// Fills in the defaults of a webhook; `policies` are those of failure and matching.
pub fn default(
    policies: [&mut Option<String>; 2],
    timeout_seconds: &mut Option<i32>,
    selectors: [&mut Option<LabelSelector>; 2],
    client: &mut WebhookClientConfig,
    rules: Option<&mut Vec<RuleWithOperations>>,
) {
    let [failure, matching] = policies;
    text(failure, "Fail");
    text(matching, "Equivalent");
    value(timeout_seconds, TIMEOUT_SECONDS);
    for selector in selectors {
        selector.get_or_insert_default();
    }
    if let Some(service) = &mut client.service {
        value(&mut service.port, 443);
    }
    for rule in rules.into_iter().flatten() {
        text(&mut rule.scope, "*");
    }
}

/// Checks a webhook.
pub fn validate(errors: &mut Errors, path: &Path, hook: &Hook<'_>) {
    let labels = hook.name.split('.').count();
    if required(errors, &path.child("name"), hook.name) {
        let mut wrong = names::dns1123_subdomain(hook.name);
        if wrong.is_empty() && labels < 3 {
            wrong.push("should be a domain with at least three segments separated by dots".to_owned());
        }
        errors.extend(wrong.into_iter().map(|why| FieldError::invalid(path.child("name"), hook.name, why)));
    }
    let versions = path.child("admissionReviewVersions");
    if hook.versions.is_empty() {
        errors.push(FieldError::required(versions, "must specify one of v1, v1beta1"));
    } else if !hook.versions.iter().any(|version| version == "v1" || version == "v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(versions, hook.versions.to_vec(), why));
    }
    for (index, rule) in hook.rules.iter().enumerate() {
        self::rule(errors, &path.child("rules").index(index), rule);
    }
    if let Some(policy) = hook.failure_policy {
        one_of(errors, &path.child("failurePolicy"), policy, &["Fail", "Ignore"]);
    }
    if let Some(policy) = hook.match_policy {
        one_of(errors, &path.child("matchPolicy"), policy, &["Equivalent", "Exact"]);
    }
    required_one_of(errors, &path.child("sideEffects"), hook.side_effects, &["None", "NoneOnDryRun"]);
    if let Some(seconds) = hook.timeout_seconds.filter(|seconds| !(1..=30).contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.push(FieldError::invalid(path.child("timeoutSeconds"), seconds, why));
    }
    for (field, selector) in ["namespaceSelector", "objectSelector"].into_iter().zip(hook.selectors) {
        if let Some(selector) = selector {
            label_selector(errors, &path.child(field), selector);
        }
    }
    client(errors, &path.child("clientConfig"), hook.client);
}

fn client(errors: &mut Errors, path: &Path, client: &WebhookClientConfig) {
    match (&client.url, &client.service) {
        (None, None) | (Some(_), Some(_)) => {
            errors.push(FieldError::required(path.clone(), "exactly one of url or service is required"));
        }
        (Some(url), None) => {
            if !url.starts_with("https://") {
                let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                errors.push(FieldError::invalid(path.child("url"), url.as_str(), why));
            }
        }
        (None, Some(service)) => {
            let path = path.child("service");
            required(errors, &path.child("name"), &service.name);
            required(errors, &path.child("namespace"), &service.namespace);
            port(errors, &path.child("port"), i64::from(service.port.unwrap_or(443)));
            if let Some(part) = service.path.as_deref().filter(|part| !part.starts_with('/')) {
                errors.push(FieldError::invalid(path.child("path"), part, "must start with a '/'"));
            }
        }
    }
}

/// Checks which requests a webhook or policy is asked about.
pub fn rule(errors: &mut Errors, path: &Path, rule: &RuleWithOperations) {
    for (field, list) in [("apiGroups", &rule.api_groups), ("apiVersions", &rule.api_versions), ("resources", &rule.resources)] {
        let path = path.child(field);
        if is_blank(list) {
            errors.push(FieldError::required(path.clone(), ""));
        }
        let given = list.as_deref().unwrap_or_default();
        if field != "resources" && given.len() > 1 && given.iter().any(|item| item == "*") {
            let why = "if '*' is present, must not specify other API groups";
            let why = if field == "apiGroups" { why } else { "if '*' is present, must not specify other API versions" };
            errors.push(FieldError::invalid(path, given.to_vec(), why));
        }
    }
    if is_blank(&rule.operations) {
        errors.push(FieldError::required(path.child("operations"), ""));
    }
    for (index, operation) in rule.operations.iter().flatten().enumerate() {
        one_of(errors, &path.child("operations").index(index), operation, OPERATIONS);
    }
    let scope = str_of(&rule.scope);
    if !scope.is_empty() {
        one_of(errors, &path.child("scope"), scope, &["*", "Cluster", "Namespaced"]);
    }
}
