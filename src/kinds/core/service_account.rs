//! ServiceAccount: an identity for pods.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::Value;

use crate::api::kind::{Column, Subresource};
use crate::kinds::print::{age, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static SERVICE_ACCOUNT: Definition<ServiceAccount> = Definition {
    subresources: &[Subresource::Token],
    columns: &[Column::NAME, Column::integer("Secrets"), Column::AGE],
    row: Some(row),
    ..Definition::namespaced("io.k8s.api.core.v1.ServiceAccount", "core/serviceaccounts", "serviceaccount").short(&["sa"])
};

fn row(account: &ServiceAccount, now: Timestamp) -> Vec<Value> {
    let count = account.secrets.as_ref().map_or(0, Vec::len);
    vec![name(&account.metadata), count.into(), age(&account.metadata, now)]
}
