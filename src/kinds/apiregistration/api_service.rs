//! APIService: who serves a group and version.

use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static API_SERVICE: Definition<APIService> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster(
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        "apiregistration.k8s.io/apiservices",
        "apiservice",
    )
    .in_api_extensions()
};
