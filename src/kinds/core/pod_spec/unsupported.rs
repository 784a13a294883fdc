//! Volumes that no node can mount. Upstream has dropped most of their drivers and leaves a pod with one waiting for ever; here it is
//! refused, with what to use instead.

use k8s_openapi::api::core::v1::Volume;

use crate::api::field::{FieldError, Path};
use crate::kinds::check::Errors;

const CLAIM: &str = "use a persistentVolumeClaim of the CSI driver";

/// Refuses a volume whose source no node can mount.
pub fn source(errors: &mut Errors, path: &Path, volume: &Volume) {
    let claim = |driver: &str| format!("{CLAIM} {driver}");
    let given = [
        ("awsElasticBlockStore", volume.aws_elastic_block_store.is_some(), claim("ebs.csi.aws.com")),
        ("azureDisk", volume.azure_disk.is_some(), claim("disk.csi.azure.com")),
        ("azureFile", volume.azure_file.is_some(), claim("file.csi.azure.com")),
        ("cephfs", volume.cephfs.is_some(), claim("cephfs.csi.ceph.com")),
        ("cinder", volume.cinder.is_some(), claim("cinder.csi.openstack.org")),
        ("fc", volume.fc.is_some(), "mount the device on the node and use a local persistent volume".to_owned()),
        ("flexVolume", volume.flex_volume.is_some(), "use a CSI driver".to_owned()),
        ("flocker", volume.flocker.is_some(), "use a CSI driver".to_owned()),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some(), claim("pd.csi.storage.gke.io")),
        ("gitRepo", volume.git_repo.is_some(), "clone into an emptyDir with an init container".to_owned()),
        ("glusterfs", volume.glusterfs.is_some(), "use a CSI driver".to_owned()),
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some(), "use a CSI driver".to_owned()),
        ("portworxVolume", volume.portworx_volume.is_some(), claim("pxd.portworx.com")),
        ("quobyte", volume.quobyte.is_some(), claim("csi.quobyte.com")),
        ("rbd", volume.rbd.is_some(), claim("rbd.csi.ceph.com")),
        ("scaleIO", volume.scale_io.is_some(), "use a CSI driver".to_owned()),
        ("storageos", volume.storageos.is_some(), "use a CSI driver".to_owned()),
        ("vsphereVolume", volume.vsphere_volume.is_some(), claim("csi.vsphere.vmware.com")),
    ];
    for (name, _, instead) in given.into_iter().filter(|(_, is_given, _)| *is_given) {
        errors.push(FieldError::forbidden(path.child(name), format!("volumes of this type are not supported; {instead}")));
    }
}
