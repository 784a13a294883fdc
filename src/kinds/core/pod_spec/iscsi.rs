//! iSCSI disks: of a pod, or of a persistent volume (upstream `validateISCSIVolumeSource`).

use k8s_openapi::api::core::v1::{ISCSIPersistentVolumeSource, ISCSIVolumeSource};

use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, required};

const LUNS: std::ops::RangeInclusive<i32> = 0..=255;
const FORMAT: &str = "must be valid format";

/// What both sources have.
struct Source<'a> {
    portal: &'a str,
    iqn: &'a str,
    lun: i32,
    initiator: Option<&'a str>,
    has_chap: bool,
    has_secret: bool,
}

/// The two sources have the same fields and no type in common.
macro_rules! common {
    ($source:expr) => {
        Source {
            portal: &$source.target_portal,
            iqn: &$source.iqn,
            lun: $source.lun,
            initiator: $source.initiator_name.as_deref(),
            has_chap: $source.chap_auth_discovery == Some(true) || $source.chap_auth_session == Some(true),
            has_secret: $source.secret_ref.is_some(),
        }
    };
}

/// Checks the disk of a pod's own volume.
pub fn of_pod(errors: &mut Errors, path: &Path, source: &ISCSIVolumeSource) {
    common!(source).check(errors, path);
}

/// Checks the disk of a persistent volume.
pub fn of_volume(errors: &mut Errors, path: &Path, source: &ISCSIPersistentVolumeSource) {
    common!(source).check(errors, path);
    if let Some(secret) = &source.secret_ref {
        required(errors, &path.child("secretRef").child("name"), secret.name.as_deref().unwrap_or(""));
    }
}

impl Source<'_> {
    fn check(&self, errors: &mut Errors, path: &Path) {
        required(errors, &path.child("targetPortal"), self.portal);
        if required(errors, &path.child("iqn"), self.iqn) {
            if !["iqn", "eui", "naa"].iter().any(|start| self.iqn.starts_with(start)) {
                let why = "must be valid format starting with iqn, eui, or naa";
                errors.push(FieldError::invalid(path.child("iqn"), self.iqn, why));
            } else if !is_name(self.iqn) {
                errors.push(FieldError::invalid(path.child("iqn"), self.iqn, FORMAT));
            }
        }
        if !LUNS.contains(&self.lun) {
            errors.push(FieldError::invalid(path.child("lun"), self.lun, "must be between 0 and 255, inclusive"));
        }
        if self.has_chap && !self.has_secret {
            errors.push(FieldError::required(path.child("secretRef"), ""));
        }
        if let Some(name) = self.initiator.filter(|name| !is_name(name)) {
            errors.push(FieldError::invalid(path.child("initiatorname"), name, FORMAT));
        }
    }
}

/// The name of an iSCSI node (upstream's three regular expressions).
fn is_name(name: &str) -> bool {
    let is_plain = |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if let Some(rest) = name.strip_prefix("iqn.") {
        let Some((authority, unique)) = rest.split_once(':') else { return false };
        let bytes = authority.as_bytes();
        let is_date = bytes.len() > 8 && bytes[7] == b'.' && bytes[4] == b'-';
        let is_date = is_date && [0, 1, 2, 3, 5, 6].iter().all(|at| bytes[*at].is_ascii_digit());
        let is_domain = |byte: &u8| byte.is_ascii_alphanumeric() || [b'-', b'.'].contains(byte);
        let is_free = |letter: char| !",;*&$|".contains(letter) && !letter.is_whitespace();
        return is_date && bytes[8..].iter().all(is_domain) && !unique.is_empty() && unique.chars().all(is_free);
    }
    let of = |start: &str, length| name.strip_prefix(start).is_some_and(|rest| is_plain(rest, length));
    of("eui.", 16) || of("naa.", 32)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn disks_are_checked_as_upstream_checks_them() {
        let good = json!({"targetPortal": "10.0.0.1", "iqn": "iqn.2024-01.io.orch:t", "lun": 0});
        let table: [(Value, &str); 8] = [
            (json!({}), ""),
            (json!({"iqn": "eui.0123456789abcdef"}), ""),
            (json!({"iqn": ""}), "iqn: Required"),
            (json!({"iqn": "x"}), "starting with iqn, eui, or naa"),
            (json!({"iqn": "iqn.2024.io:t"}), "must be valid format"),
            (json!({"lun": 256}), "between 0 and 255"),
            (json!({"chapAuthSession": true}), "secretRef: Required"),
            (json!({"initiatorName": "me"}), "initiatorname: Invalid"),
        ];
        for (change, expected) in table {
            let mut value = good.clone();
            change.as_object().unwrap().iter().for_each(|(key, change)| value[key] = change.clone());
            let mut errors = Errors::new();
            of_pod(&mut errors, &Path::new("iscsi"), &serde_json::from_value(value).unwrap());
            let seen: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert_eq!(seen.is_empty(), expected.is_empty(), "{change}: {seen:?}");
            assert!(seen.join("; ").contains(expected), "{change}: {seen:?}");
        }
    }
}
