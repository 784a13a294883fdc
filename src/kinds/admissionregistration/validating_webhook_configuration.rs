//! ValidatingWebhookConfiguration: webhooks that check objects.

use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;

use crate::kinds::typed::Definition;

/// The kind.
pub static VALIDATING_WEBHOOK_CONFIGURATION: Definition<ValidatingWebhookConfiguration> = Definition::cluster(
    "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
    "admissionregistration.k8s.io/validatingwebhookconfigurations",
    "validatingwebhookconfiguration",
)
.in_api_extensions();
