//! FlowSchema: which requests belong to which priority level.

use k8s_openapi::api::flowcontrol::v1::FlowSchema;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static FLOW_SCHEMA: Definition<FlowSchema> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::cluster("io.k8s.api.flowcontrol.v1.FlowSchema", "flowcontrol.apiserver.k8s.io/flowschemas", "flowschema")
};
