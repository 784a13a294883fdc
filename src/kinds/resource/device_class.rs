//! DeviceClass: a kind of device.

use k8s_openapi::api::resource::v1::DeviceClass;

use crate::kinds::typed::Definition;

/// The kind.
pub static DEVICE_CLASS: Definition<DeviceClass> =
    Definition::cluster("io.k8s.api.resource.v1.DeviceClass", "resource.k8s.io/deviceclasses", "deviceclass");
