//! IPAddress: one allocated Service address.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::IPAddress;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{immutable, required, str_of};
use crate::kinds::print::{age, name};
use crate::kinds::typed::{Definition, Selectable, names_of};

const FIELDS: [Selectable; 1] = [Selectable::text("spec.parentRef.name", &[&["spec", "parentRef", "name"]])];

/// The kind.
pub static IP_ADDRESS: Definition<IPAddress> = Definition {
    columns: &[Column::NAME, Column::text("ParentRef"), Column::AGE],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    validate: Some(validate),
    validate_update: Some(validate_update),
    name_rule: address,
    ..Definition::cluster("io.k8s.api.networking.v1.IPAddress", "networking.k8s.io/ipaddresses", "ipaddress").short(&["ip"])
};

fn address(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(address) if address.to_string() == text => Vec::new(),
        Ok(_) => vec!["must be a valid IP address in canonical form".to_owned()],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

fn validate(address: &IPAddress) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec").child("parentRef");
    let parent = &address.spec.parent_ref;
    required(&mut errors, &path.child("resource"), &parent.resource);
    required(&mut errors, &path.child("name"), &parent.name);
    errors
}

fn validate_update(new: &IPAddress, old: &IPAddress, _subresource: Option<Subresource>) -> Vec<FieldError> {
    let mut errors = validate(new);
    immutable(&mut errors, &Path::new("spec").child("parentRef"), &new.spec, &old.spec);
    errors
}

fn row(address: &IPAddress, now: Timestamp) -> Vec<Value> {
    let parent = &address.spec.parent_ref;
    let resource = match str_of(&parent.group) {
        "" => parent.resource.to_lowercase(),
        group => format!("{}.{group}", parent.resource).to_lowercase(),
    };
    let parts = [resource.as_str(), str_of(&parent.namespace), parent.name.as_str()];
    let parent = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    vec![name(&address.metadata), parent.into(), age(&address.metadata, now)]
}
