//! `orch agent`: a node of a cluster that runs elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::error::CmdError;
use super::node::{self, NodeParts};
use super::settings::AgentSettings;
use super::token::Token;
use super::{host, notify, run};
use crate::agent::bootstrap::{self, JoinConfig, JoinError, Joined};
use crate::rt::{Backoff, SystemClock, TaskGroup, limits};

/// Runs until a signal.
///
/// # Errors
/// [`CmdError`], which says what to do.
pub async fn run(settings: AgentSettings) -> Result<(), CmdError> {
    if !host::is_root() {
        return Err(CmdError::NotRoot);
    }
    let tasks = TaskGroup::new();
    let removed = tokio::select! {
        started = start(&settings, &tasks) => started?,
        stopped = run::until_stopped(&tasks) => return stopped,
    };
    notify::send("READY=1");
    tokio::select! {
        stopped = run::until_stopped(&tasks) => stopped,
        () = removed.cancelled() => {
            notify::send("STOPPING=1");
            tasks.shutdown(limits::SHUTDOWN_GRACE).await;
            Err(CmdError::Removed { name: name(&settings) })
        }
    }
}

fn name(settings: &AgentSettings) -> String {
    settings.node.node_name.clone().unwrap_or_else(host::name)
}

/// Joins and starts the node; returns what is cancelled when it is removed from the cluster.
async fn start(settings: &AgentSettings, tasks: &TaskGroup) -> Result<CancellationToken, CmdError> {
    node::check(&settings.node)?;
    let clock = SystemClock::start(tasks);
    let given = settings.token.as_deref().filter(|token| !token.is_empty());
    let token = given.map(Token::parse).transpose().map_err(CmdError::Setting)?;
    let name = name(settings);
    let node_ip = settings.node.node_ip.unwrap_or_else(host::address);
    let data_dir = settings.common.data_dir.join("agent");
    let config = JoinConfig {
        server_urls: settings.join.clone(),
        ca_fingerprint: token.as_ref().and_then(|token| token.ca_fingerprint.clone()),
        token: token.map(|token| token.secret).unwrap_or_default(),
        node_name: name.clone(),
        node_ip,
        data_dir: data_dir.clone(),
        clock: Arc::clone(&clock),
    };
    let joined = join(config, tasks).await?;
    tracing::info!(server = settings.join.join(","), node = name, "joined");
    let removed = joined.uplink.removed();
    let parts = NodeParts {
        settings: &settings.node,
        cluster: joined.cluster,
        name,
        data_dir,
        bind_address: settings.bind_address,
        node_ip,
        is_control_plane: false,
        client: joined.client,
        uplink: Some(joined.uplink),
        serving: joined.serving,
        client_ca_pem: joined.client_ca_pem,
        clock,
    };
    node::start(parts, tasks).await?;
    Ok(removed)
}

/// Joins; a server that does not answer yet is asked again, for ever.
async fn join(config: JoinConfig, tasks: &TaskGroup) -> Result<Joined, CmdError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        match bootstrap::join(config.clone(), tasks).await {
            Ok(joined) => return Ok(joined),
            Err(error) if error.is_transient() => {
                let delay = backoff.next_delay();
                tracing::warn!(error = %CmdError::Node(error.into()).report(), delay_ms = delay.as_millis(), "cannot join yet");
                tokio::time::sleep(delay).await;
            }
            Err(JoinError::Removed { name }) => return Err(CmdError::Removed { name }),
            Err(error) => return Err(CmdError::Node(error.into())),
        }
    }
}
