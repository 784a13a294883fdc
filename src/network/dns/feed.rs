//! Carries what the informers tell into the index, change by change, and the user's settings to where they are used.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::index::Part;
use super::resolver::Resolver;
use super::settings::{self, Settings};
use crate::client::informer::{Change, Informer, Informers};
use crate::client::recorder::{EventType, Recorder, reference};

/// Follows Services, EndpointSlices and namespaces; ends when the informers do.
pub(super) async fn follow(informers: &Informers, resolver: &Resolver) {
    let mut services = informers.of::<Service>().subscribe();
    let mut slices = informers.of::<EndpointSlice>().subscribe();
    let mut namespaces = informers.of::<Namespace>().subscribe();
    loop {
        tokio::select! {
            change = services.next() => {
                let Some(change) = change else { return };
                let mut index = resolver.index.write();
                match change {
                    Change::Applied { old, new } => {
                        old.iter().for_each(|old| index.remove_service(old));
                        index.set_service(&new);
                    }
                    Change::Deleted(old) => index.remove_service(&old),
                    Change::Synced => index.fill(Part::Services),
                }
            }
            change = slices.next() => {
                let Some(change) = change else { return };
                let mut index = resolver.index.write();
                match change {
                    Change::Applied { old, new } => index.set_slice(old.as_deref(), &new),
                    Change::Deleted(old) => index.remove_slice(&old),
                    Change::Synced => index.fill(Part::Slices),
                }
            }
            change = namespaces.next() => {
                let Some(change) = change else { return };
                let mut index = resolver.index.write();
                match change {
                    Change::Applied { new, .. } => index.set_namespace(&new, true),
                    Change::Deleted(old) => index.set_namespace(&old, false),
                    Change::Synced => index.fill(Part::Namespaces),
                }
            }
        }
    }
}

/// Follows the user's ConfigMap; ends when the informer does.
pub(super) async fn follow_settings(informer: &Informer<ConfigMap>, resolver: &Resolver, recorder: &Recorder) {
    let mut changes = informer.subscribe();
    let mut settings = Settings::default();
    while let Some(change) = changes.next().await {
        let map = match change {
            Change::Applied { new, .. } => Some(new),
            Change::Deleted(_) => None,
            Change::Synced => continue,
        };
        let (next, wrong) = settings.updated(map.as_deref());
        if let Some(map) = map.filter(|_| !wrong.is_empty()) {
            let message = format!("{}; the last good value stays in use", wrong.join("; "));
            tracing::warn!(namespace = settings::NAMESPACE, name = settings::NAME, message, "the DNS settings are wrong");
            recorder.event(&reference(&*map), EventType::Warning, "InvalidConfiguration", message);
        }
        if next.routes != settings.routes {
            resolver.forwarder.reroute(next.routes.clone());
        }
        resolver.hosts.store(Arc::new(next.hosts.clone()));
        settings = next;
    }
}
