//! CSIDriver: what a storage driver can do.

use jiff::Timestamp;
use k8s_openapi::api::storage::v1::CSIDriver;
use serde_json::Value;

use crate::api::kind::Column;
use crate::kinds::check::is_blank;
use crate::kinds::core::pod_spec::defaults::{text, value};
use crate::kinds::print::{UNSET, age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static CSI_DRIVER: Definition<CSIDriver> = Definition {
    columns: &[
        Column::NAME,
        Column { kind: "boolean", ..Column::text("AttachRequired") },
        Column { kind: "boolean", ..Column::text("PodInfoOnMount") },
        Column { kind: "boolean", ..Column::text("StorageCapacity") },
        Column::text("TokenRequests"),
        Column { kind: "boolean", ..Column::text("RequiresRepublish") },
        Column::text("Modes"),
        Column::AGE,
    ],
    row: Some(row),
    default: Some(default),
    ..Definition::cluster("io.k8s.api.storage.v1.CSIDriver", "storage.k8s.io/csidrivers", "csidriver")
};

fn default(driver: &mut CSIDriver) {
    let spec = &mut driver.spec;
    value(&mut spec.attach_required, true);
    value(&mut spec.pod_info_on_mount, false);
    value(&mut spec.storage_capacity, false);
    text(&mut spec.fs_group_policy, "ReadWriteOnceWithFSType");
    if is_blank(&spec.volume_lifecycle_modes) {
        spec.volume_lifecycle_modes = Some(vec!["Persistent".to_owned()]);
    }
    value(&mut spec.requires_republish, false);
    value(&mut spec.se_linux_mount, false);
}

fn row(driver: &CSIDriver, now: Timestamp) -> Vec<Value> {
    let spec = &driver.spec;
    let tokens: Vec<&str> = spec.token_requests.iter().flatten().map(|request| request.audience.as_str()).collect();
    let tokens = if tokens.is_empty() { UNSET.to_owned() } else { tokens.join(",") };
    let modes = spec.volume_lifecycle_modes.clone().unwrap_or_default();
    let modes = if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") };
    vec![
        name(&driver.metadata),
        spec.attach_required.unwrap_or(true).into(),
        spec.pod_info_on_mount.unwrap_or(false).into(),
        spec.storage_capacity.unwrap_or(false).into(),
        tokens.into(),
        spec.requires_republish.unwrap_or(false).into(),
        modes.into(),
        age(&driver.metadata, now),
    ]
}
