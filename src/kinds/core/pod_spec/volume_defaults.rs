//! Defaults of volumes (upstream `pkg/apis/core/v1/defaults.go`).

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, ProjectedVolumeSource, Volume, VolumeProjection};

use super::defaults::{field_ref, pull_policy, quantity, resource_field_ref, text, value};

/// `0644`, the mode of files of configuration.
const FILE_MODE: i32 = 0o644;

/// Defaults of one volume; one without a source is an empty directory.
pub fn volume(volume: &mut Volume) {
    if (Volume { name: String::new(), ..volume.clone() }) == Volume::default() {
        volume.empty_dir.get_or_insert_default();
    }
    if let Some(limit) = volume.empty_dir.as_mut().and_then(|dir| dir.size_limit.as_mut()) {
        quantity(limit);
    }
    if let Some(secret) = &mut volume.secret {
        value(&mut secret.default_mode, FILE_MODE);
    }
    if let Some(config) = &mut volume.config_map {
        value(&mut config.default_mode, FILE_MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        value(&mut downward.default_mode, FILE_MODE);
        downward.items.iter_mut().flatten().for_each(downward_file);
    }
    if let Some(projected) = &mut volume.projected {
        self::projected(projected);
    }
    if let Some(host_path) = &mut volume.host_path {
        value(&mut host_path.type_, String::new());
    }
    if let Some(image) = &mut volume.image {
        let policy = pull_policy(image.reference.as_deref().unwrap_or_default());
        text(&mut image.pull_policy, policy);
    }
    if let Some(template) = volume.ephemeral.as_mut().and_then(|ephemeral| ephemeral.volume_claim_template.as_mut()) {
        text(&mut template.spec.volume_mode, "Filesystem");
    }
    network(volume);
}

fn projected(projected: &mut ProjectedVolumeSource) {
    value(&mut projected.default_mode, FILE_MODE);
    projected.sources.iter_mut().flatten().for_each(projection);
}

fn projection(source: &mut VolumeProjection) {
    if let Some(token) = &mut source.service_account_token {
        value(&mut token.expiration_seconds, 3_600);
    }
    if let Some(downward) = &mut source.downward_api {
        downward.items.iter_mut().flatten().for_each(downward_file);
    }
    if let Some(certificate) = &mut source.pod_certificate {
        value(&mut certificate.max_expiration_seconds, 86_400);
    }
}

fn downward_file(file: &mut DownwardAPIVolumeFile) {
    if let Some(field) = &mut file.field_ref {
        field_ref(field);
    }
    if let Some(field) = &mut file.resource_field_ref {
        resource_field_ref(field);
    }
}

fn network(volume: &mut Volume) {
    if let Some(iscsi) = &mut volume.iscsi {
        text(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        text(&mut rbd.pool, "rbd");
        text(&mut rbd.user, "admin");
        text(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut volume.azure_disk {
        text(&mut disk.caching_mode, "ReadWrite");
        text(&mut disk.kind, "Shared");
        text(&mut disk.fs_type, "ext4");
        value(&mut disk.read_only, false);
    }
    if let Some(scale) = &mut volume.scale_io {
        text(&mut scale.storage_mode, "ThinProvisioned");
        text(&mut scale.fs_type, "xfs");
    }
}
