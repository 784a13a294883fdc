//! The kinds of `storage.k8s.io/v1`.

pub mod binding;
pub mod csi_driver;
pub mod csi_node;
pub mod csi_storage_capacity;
pub mod local_path;
pub mod storage_class;
pub mod volume_attachment;
pub mod volume_attributes_class;
