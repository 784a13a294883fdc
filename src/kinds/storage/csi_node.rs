//! CSINode: the storage drivers of a node.

use k8s_openapi::api::storage::v1::CSINode;

use crate::kinds::typed::Definition;

/// The kind.
pub static CSI_NODE: Definition<CSINode> =
    Definition::cluster("io.k8s.api.storage.v1.CSINode", "storage.k8s.io/csinodes", "csinode");
