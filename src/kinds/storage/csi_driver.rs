//! CSIDriver: what a storage driver can do.

use k8s_openapi::api::storage::v1::CSIDriver;

use crate::kinds::typed::Definition;

/// The kind.
pub static CSI_DRIVER: Definition<CSIDriver> =
    Definition::cluster("io.k8s.api.storage.v1.CSIDriver", "storage.k8s.io/csidrivers", "csidriver");
