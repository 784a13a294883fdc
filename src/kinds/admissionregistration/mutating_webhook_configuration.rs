//! MutatingWebhookConfiguration: webhooks that change objects.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;

use crate::kinds::typed::Definition;

/// The kind.
pub static MUTATING_WEBHOOK_CONFIGURATION: Definition<MutatingWebhookConfiguration> = Definition::cluster(
    "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
    "admissionregistration.k8s.io/mutatingwebhookconfigurations",
    "mutatingwebhookconfiguration",
)
.in_api_extensions();
