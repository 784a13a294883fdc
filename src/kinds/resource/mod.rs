//! The kinds of `resource.k8s.io/v1`.

pub mod device_class;
pub mod resource_claim;
pub mod resource_claim_template;
pub mod resource_slice;
