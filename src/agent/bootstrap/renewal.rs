//! What goes on after joining: certificates are renewed in time, and the servers that there are now are learned.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::watch;

use super::kept::{Kept, is_old, save_servers};
use super::request::{CLIENT_SIGNER, SERVING_SIGNER, request};
use super::{JoinConfig, JoinError, client_tls};
use crate::client::Client;
use crate::client::https::Https;
use crate::client::informer::{Informer, Scope};
use crate::http::connector::Endpoint;
use crate::pki::Identity;
use crate::rt::{Backoff, TaskGroup};

/// How often the age of the certificates is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3_600);
/// The slices of the Service `kubernetes`: the servers.
const SERVERS: &str = "labelSelector=kubernetes.io/service-name%3Dkubernetes";

pub(super) struct Renewal {
    pub(super) config: JoinConfig,
    pub(super) folder: PathBuf,
    pub(super) kept: Kept,
    pub(super) transport: Arc<Https>,
    pub(super) client: Client,
    pub(super) sender: watch::Sender<Identity>,
    pub(super) tasks: TaskGroup,
}

impl Renewal {
    /// Renews the certificates in time, for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
        let mut steps = self.config.clock.steps();
        loop {
            let pause = match self.renew().await {
                Ok(()) => {
                    backoff.reset();
                    RENEWAL_CHECK
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's certificates were not renewed; trying again");
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The clock lives as long as we do.
                _ = steps.changed() => {}
            }
        }
    }

    async fn renew(&mut self) -> Result<(), JoinError> {
        let now = self.config.clock.now();
        if is_old(&self.kept.client, now) {
            self.kept.client = request(&self.config, &self.client, CLIENT_SIGNER, &self.tasks).await?;
            self.kept.save(&self.folder)?;
            self.transport.replace_identity(client_tls(&self.kept)?);
        }
        if is_old(&self.kept.serving, now) {
            self.kept.serving = request(&self.config, &self.client, SERVING_SIGNER, &self.tasks).await?;
            self.kept.save(&self.folder)?;
            self.sender.send_replace(self.kept.serving.clone());
        }
        Ok(())
    }
}

/// Learns the servers from the endpoints of the Service `kubernetes`, and keeps them for the next start.
pub(super) async fn learn(client: Client, transport: Arc<Https>, given: Vec<Endpoint>, folder: PathBuf, tasks: TaskGroup) {
    let scope = Scope { namespace: "default".to_owned(), query: SERVERS.to_owned() };
    let slices = Informer::<EndpointSlice>::start(&tasks, client, scope);
    let mut changes = slices.subscribe();
    let mut known = Vec::new();
    while changes.next().await.is_some() {
        let learned = servers(slices.list().iter().map(|slice| &**slice));
        if learned.is_empty() || learned == known {
            continue;
        }
        let urls: Vec<String> = learned.iter().map(|endpoint| format!("https://{}", endpoint.authority())).collect();
        tracing::info!(servers = urls.join(","), "the cluster's servers");
        transport.servers().replace(given.iter().chain(&learned).cloned().collect());
        if let Err(error) = save_servers(&folder, &urls) {
            tracing::warn!(%error, "the servers were not noted for the next start");
        }
        known = learned;
    }
    std::future::pending::<()>().await;
}

fn servers<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|port| port.name.as_deref() == Some("https"));
        let Some(port) = ports.filter_map(|port| u16::try_from(port.port?).ok()).next() else { continue };
        let is_ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
        };
        let endpoints = slice.endpoints.iter().flatten().filter(is_ready);
        all.extend(endpoints.flat_map(|endpoint| &endpoint.addresses).map(|address| Endpoint::new(true, address.as_str(), port)));
    }
    all.sort_by_cached_key(Endpoint::authority);
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_slices() {
        let slice = |addresses: &[&str], ready: bool| -> EndpointSlice {
            serde_json::from_value(serde_json::json!({
                "metadata": {}, "addressType": "IPv4", "ports": [{"name": "https", "port": 6443}],
                "endpoints": [{"addresses": addresses, "conditions": {"ready": ready}}],
            }))
            .unwrap()
        };
        let slices = [slice(&["10.0.0.2"], true), slice(&["10.0.0.3"], false), slice(&["10.0.0.1", "10.0.0.2"], true)];
        let found: Vec<String> = servers(slices.iter()).iter().map(Endpoint::authority).collect();
        assert_eq!(found, ["10.0.0.1:6443", "10.0.0.2:6443"]);
    }
}
