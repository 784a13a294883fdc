//! Ingress: HTTP rules that lead to Services.

use k8s_openapi::api::networking::v1::Ingress;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static INGRESS: Definition<Ingress> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.networking.v1.Ingress", "networking.k8s.io/ingresses", "ingress").short(&["ing"])
};
