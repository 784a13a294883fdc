//! CSIStorageCapacity: how much storage a topology segment has left.

use k8s_openapi::api::storage::v1::CSIStorageCapacity;

use crate::kinds::typed::Definition;

/// The kind.
pub static CSI_STORAGE_CAPACITY: Definition<CSIStorageCapacity> = Definition::namespaced(
    "io.k8s.api.storage.v1.CSIStorageCapacity",
    "storage.k8s.io/csistoragecapacities",
    "csistoragecapacity",
);
