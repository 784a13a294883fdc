//! Notices when somebody else changes what the rules of the pod network stand on: the node's own table, Docker's chains (by nftables,
//! which Debian's `iptables` is too), and the kernel's switch for forwarding.

use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::{Firewall, find, run};
use crate::network::nft::{Family, Monitor, Table};
use crate::rt::Backoff;

/// `RTNLGRP_IPV4_NETCONF`: settings of interfaces, forwarding among them.
const NETCONF_GROUP: u32 = 24;
const READ_BYTES: usize = 64 << 10;
/// The old kind of iptables tells nobody of changes: there, and only there, the rules are looked at from time to time.
const LEGACY_INTERVAL: Duration = Duration::from_secs(60);

/// Ends when something changed; each call of [`Watch::changed`] waits for the next.
pub(in crate::network) struct Watch {
    own: Option<Monitor>,
    docker: Option<Monitor>,
    settings: Option<TokioSocket>,
    is_legacy: bool,
    backoff: Backoff,
}

impl Watch {
    /// Opens what there is to listen to; without nf_tables there is less.
    pub(in crate::network) async fn open(firewall: &Firewall) -> Self {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let mut watch = Self { own: None, docker: None, settings: None, is_legacy: is_legacy().await, backoff };
        watch.open_missing(firewall);
        watch
    }

    fn open_missing(&mut self, firewall: &Firewall) {
        let filter = Table::new(Family::Ipv4, "filter");
        if self.own.is_none() {
            self.own = firewall.table.monitor().inspect_err(|error| tracing::debug!(%error, "cannot watch nf_tables")).ok();
        }
        if self.docker.is_none() {
            let opened = firewall.table.nft().and_then(|nft| nft.monitor(&filter));
            self.docker = opened.inspect_err(|error| tracing::debug!(%error, "cannot watch nf_tables")).ok();
        }
        if self.settings.is_none() {
            self.settings = settings().inspect_err(|error| tracing::debug!(%error, "cannot watch settings")).ok();
        }
    }

    /// Waits until something changed. A socket that failed counts as a change and is opened anew. Cancel safe.
    pub(in crate::network) async fn changed(&mut self, firewall: &Firewall) {
        let is_legacy = self.is_legacy;
        let has_failed = tokio::select! {
            is_lost = of_monitor(&mut self.own) => is_lost,
            is_lost = of_monitor(&mut self.docker) => is_lost,
            is_lost = of_settings(&mut self.settings) => is_lost,
            () = tokio::time::sleep(LEGACY_INTERVAL), if is_legacy => false,
        };
        if has_failed {
            tokio::time::sleep(self.backoff.next_delay()).await;
            self.open_missing(firewall);
        } else {
            self.backoff.reset();
        }
    }
}

fn settings() -> std::io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind_auto()?;
    socket.socket_ref().add_membership(NETCONF_GROUP)?;
    Ok(socket)
}

/// Whether the monitor is lost.
async fn of_monitor(monitor: &mut Option<Monitor>) -> bool {
    let Some(open) = monitor else { return std::future::pending().await };
    match open.changed().await {
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(%error, "the watch over the rules is lost");
            *monitor = None;
            true
        }
    }
}

async fn of_settings(socket: &mut Option<TokioSocket>) -> bool {
    let Some(open) = socket else { return std::future::pending().await };
    let mut buffer = Vec::with_capacity(READ_BYTES);
    match open.recv(&mut buffer).await {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => false,
        Err(error) => {
            tracing::warn!(%error, "the watch over the kernel's settings is lost");
            *socket = None;
            true
        }
    }
}

async fn is_legacy() -> bool {
    let Some(iptables) = find("iptables") else { return false };
    run(&iptables, &["--version"], "").await.is_ok_and(|version| version.contains("legacy"))
}
