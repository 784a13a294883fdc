//! CustomResourceDefinition: a kind that a user adds.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static CUSTOM_RESOURCE_DEFINITION: Definition<CustomResourceDefinition> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster(
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        "apiextensions.k8s.io/customresourcedefinitions",
        "customresourcedefinition",
    )
    .short(&["crd", "crds"])
    .in_api_extensions()
};
