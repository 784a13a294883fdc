//! IngressClass: who serves an Ingress.

use k8s_openapi::api::networking::v1::IngressClass;

use crate::kinds::typed::Definition;

/// The kind.
pub static INGRESS_CLASS: Definition<IngressClass> =
    Definition::cluster("io.k8s.api.networking.v1.IngressClass", "networking.k8s.io/ingressclasses", "ingressclass");
