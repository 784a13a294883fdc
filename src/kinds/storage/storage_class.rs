//! StorageClass: how volumes are provisioned.

use k8s_openapi::api::storage::v1::StorageClass;

use crate::kinds::typed::Definition;

/// The kind.
pub static STORAGE_CLASS: Definition<StorageClass> =
    Definition::cluster("io.k8s.api.storage.v1.StorageClass", "storage.k8s.io/storageclasses", "storageclass").short(&["sc"]);
