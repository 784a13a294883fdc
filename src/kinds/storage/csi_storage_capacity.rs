//! CSIStorageCapacity: how much storage a topology segment has left.

use k8s_openapi::api::storage::v1::CSIStorageCapacity;

use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::api::names;
use crate::kinds::check::required_rule;
use crate::kinds::print::name;
use crate::kinds::typed::Definition;

/// The kind.
pub static CSI_STORAGE_CAPACITY: Definition<CSIStorageCapacity> = Definition {
    columns: &[Column::NAME, Column::text("StorageClassName"), Column::text("Capacity")],
    row: Some(|capacity, _now| {
        let amount = capacity.capacity.as_ref().map_or("<unset>", |amount| amount.0.as_str());
        vec![name(&capacity.metadata), capacity.storage_class_name.clone().into(), amount.into()]
    }),
    validate: Some(validate),
    ..Definition::namespaced(
        "io.k8s.api.storage.v1.CSIStorageCapacity",
        "storage.k8s.io/csistoragecapacities",
        "csistoragecapacity",
    )
};

fn validate(capacity: &CSIStorageCapacity) -> Vec<FieldError> {
    let mut errors = Vec::new();
    required_rule(&mut errors, &Path::new("storageClassName"), &capacity.storage_class_name, names::dns1123_subdomain);
    errors
}
