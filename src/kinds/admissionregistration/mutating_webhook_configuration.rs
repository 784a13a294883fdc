//! MutatingWebhookConfiguration: webhooks that change objects.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;

use super::webhook::{self, Hook};
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::kinds::core::pod_spec::defaults::text;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static MUTATING_WEBHOOK_CONFIGURATION: Definition<MutatingWebhookConfiguration> = Definition {
    columns: &[Column::NAME, Column::integer("Webhooks"), Column::AGE],
    row: Some(|config, now| {
        let count = config.webhooks.as_ref().map_or(0, Vec::len);
        vec![name(&config.metadata), count.into(), age(&config.metadata, now)]
    }),
    default: Some(default),
    validate: Some(validate),
    generation: Some(true),
    ..Definition::cluster(
        "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
        "admissionregistration.k8s.io/mutatingwebhookconfigurations",
        "mutatingwebhookconfiguration",
    )
    .in_api_extensions()
};

fn default(config: &mut MutatingWebhookConfiguration) {
    for hook in config.webhooks.iter_mut().flatten() {
        text(&mut hook.reinvocation_policy, "Never");
        webhook::default(
            [&mut hook.failure_policy, &mut hook.match_policy],
            &mut hook.timeout_seconds,
            [&mut hook.namespace_selector, &mut hook.object_selector],
            &mut hook.client_config,
            hook.rules.as_mut(),
        );
    }
}

fn validate(config: &MutatingWebhookConfiguration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (index, hook) in config.webhooks.iter().flatten().enumerate() {
        let path = Path::new("webhooks").index(index);
        if !seen.insert(&hook.name) {
            errors.push(FieldError::duplicate(path.child("name"), hook.name.as_str()));
        }
        let hook = Hook {
            name: &hook.name,
            versions: &hook.admission_review_versions,
            side_effects: &hook.side_effects,
            failure_policy: hook.failure_policy.as_deref(),
            match_policy: hook.match_policy.as_deref(),
            timeout_seconds: hook.timeout_seconds,
            client: &hook.client_config,
            rules: hook.rules.as_deref().unwrap_or_default(),
            selectors: [hook.namespace_selector.as_ref(), hook.object_selector.as_ref()],
        };
        webhook::validate(&mut errors, &path, &hook);
    }
    errors
}
