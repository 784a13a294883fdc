//! ResourceSlice: devices that a node offers.

use k8s_openapi::api::resource::v1::ResourceSlice;

use crate::api::kind::Column;
use crate::kinds::print::{age, name};
use crate::kinds::typed::{Definition, Selectable, names_of};

const FIELDS: [Selectable; 2] =
    [Selectable::text("spec.nodeName", &[&["spec", "nodeName"]]), Selectable::text("spec.driver", &[&["spec", "driver"]])];

/// The kind.
pub static RESOURCE_SLICE: Definition<ResourceSlice> = Definition {
    columns: &[Column::NAME, Column::text("Node"), Column::text("Driver"), Column::text("Pool"), Column::AGE],
    row: Some(|slice, now| {
        let spec = &slice.spec;
        vec![
            name(&slice.metadata),
            spec.node_name.clone().unwrap_or_default().into(),
            spec.driver.clone().into(),
            spec.pool.name.clone().into(),
            age(&slice.metadata, now),
        ]
    }),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    generation: Some(true),
    ..Definition::cluster("io.k8s.api.resource.v1.ResourceSlice", "resource.k8s.io/resourceslices", "resourceslice")
};
