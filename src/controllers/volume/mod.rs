//! The controllers of storage: claims and volumes are bound ([`binder`]), kept while they are used ([`protection`]), made for pods
//! ([`ephemeral`]), attached to nodes ([`attach`]), made to grow ([`expand`]), and made on nodes by the built-in provisioner ([`local_path`]).

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::client::informer::Informer;
use crate::kinds::storage::binding;

mod attach;
mod binder;
mod ephemeral;
mod expand;
mod local_path;
mod protection;

pub(super) use attach::attach;
pub(super) use binder::binder;
pub(super) use ephemeral::ephemeral;
pub(super) use expand::expand;
pub(super) use local_path::local_path;
pub(super) use protection::{claim_protection, volume_protection};

/// The index of pods by the claims that they use, as `NAMESPACE/CLAIM`.
const BY_CLAIM: &str = "claim";

fn claims_of(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    binding::claims_of(pod).map(|(claim, _)| format!("{namespace}/{claim}")).collect()
}

/// Indexes pods by their claims; several controllers share the index.
fn index_pods(pods: &Arc<Informer<Pod>>) {
    pods.add_index(BY_CLAIM, claims_of);
}

/// What is to be said in an event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Say {
    is_warning: bool,
    reason: &'static str,
    message: String,
}

impl Say {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_warning: false, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { is_warning: true, reason, message: message.into() }
    }
}
