//! CSINode: the storage drivers of a node.

use k8s_openapi::api::storage::v1::CSINode;

use crate::api::kind::Column;
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static CSI_NODE: Definition<CSINode> = Definition {
    columns: &[Column::NAME, Column::integer("Drivers"), Column::AGE],
    row: Some(|node, now| vec![name(&node.metadata), node.spec.drivers.len().into(), age(&node.metadata, now)]),
    ..Definition::cluster("io.k8s.api.storage.v1.CSINode", "storage.k8s.io/csinodes", "csinode")
};
