//! PersistentVolumeClaim: a request for storage.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Typed;

use crate::api::field::{FieldError, Path};
use crate::api::kind::Subresource;
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::check::{Errors, label_selector, one_of, rule};
use crate::kinds::typed::Definition;

/// The kind.
pub static PERSISTENT_VOLUME_CLAIM: Definition<PersistentVolumeClaim> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.core.v1.PersistentVolumeClaim", "core/persistentvolumeclaims", "persistentvolumeclaim")
        .short(&["pvc"])
};

/// Checks the specification of a claim.
pub fn spec(errors: &mut Errors, path: &Path, spec: &PersistentVolumeClaimSpec) {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.is_empty() {
        errors.push(FieldError::required(path.child("accessModes"), "at least 1 access mode is required"));
    }
    access_modes(errors, &path.child("accessModes"), modes);
    if let Some(selector) = &spec.selector {
        label_selector(errors, &path.child("selector"), selector);
    }
    let storage = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()).and_then(|list| list.get("storage"));
    let at = path.child("resources").key("storage");
    match storage {
        None => errors.push(FieldError::required(at, "")),
        Some(amount) => {
            if !amount_is_positive(amount) {
                errors.push(FieldError::invalid(at, amount.0.as_str(), "must be greater than zero"));
            }
        }
    }
    for (name, text) in
        [("storageClassName", &spec.storage_class_name), ("volumeAttributesClassName", &spec.volume_attributes_class_name)]
    {
        if let Some(text) = text.as_deref().filter(|text| !text.is_empty()) {
            rule(errors, &path.child(name), text, names::dns1123_subdomain);
        }
    }
    if let Some(mode) = &spec.volume_mode {
        one_of(errors, &path.child("volumeMode"), mode, &["Block", "Filesystem"]);
    }
}

/// Checks the ways in which a volume is shared.
pub fn access_modes(errors: &mut Errors, path: &Path, modes: &[String]) {
    for mode in modes {
        one_of(errors, path, mode, &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]);
    }
    let is_exclusive = modes.iter().any(|mode| mode == "ReadWriteOncePod");
    if is_exclusive && modes.len() > 1 {
        errors.push(FieldError::forbidden(path.clone(), "may not use ReadWriteOncePod with other access modes"));
    }
}

/// Whether an amount is above zero; one that does not parse is not.
pub fn amount_is_positive(amount: &Typed) -> bool {
    Quantity::try_from(amount).is_ok_and(|amount| amount > Quantity::ZERO)
}
