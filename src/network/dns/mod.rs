//! The cluster's DNS, in every agent: UDP and TCP at the cluster DNS address, which is a /32 on the host's `lo`. So a pod's question
//! never leaves its node, meets no NAT, and is answered whether or not a server is there.
//!
//! The cluster's names ([`zone`], [`reverse`]) are answered from an index in memory ([`index`]) that follows the informers; all
//! else is asked of the host's resolvers ([`forward`]). Answers follow the Kubernetes DNS specification 1.1.0 and, where that is
//! silent, CoreDNS's plugins `kubernetes`, `hosts`, `forward` and `cache`.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::RwLock;
use rtnetlink::Handle;
use tokio::net::TcpListener;

use super::NetworkError;
use super::parts::PartContext;
use crate::client::informer::Scope;
use crate::client::recorder::Recorder;
use crate::rt::{Backoff, TaskGroup};

pub(super) mod address;
mod entry;
mod feed;
mod forward;
mod index;
mod message;
mod metrics;
mod name;
mod reply;
mod resolver;
mod reverse;
mod settings;
mod tcp;
mod udp;
mod zone;

#[cfg(test)]
mod tests;

use forward::Forwarder;
use index::Index;
use metrics::Counters;
use name::Name;
use resolver::Resolver;
use zone::Zone;

const PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
enum DnsError {
    #[error("{0} is no domain")]
    Domain(String),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error("cannot listen on {address}: {why}")]
    Listen { address: SocketAddr, why: String },
    #[error("the server at {address} stopped: {source}")]
    Serve { address: SocketAddr, source: io::Error },
}

/// Serves until it is dropped.
pub fn run(context: PartContext) -> BoxFuture<'static, ()> {
    serve(context).boxed()
}

async fn serve(context: PartContext) {
    let address = SocketAddr::new(context.cluster_dns, PORT);
    let resolver = match resolver(&context, address) {
        Ok(resolver) => resolver,
        Err(error) => {
            tracing::error!(%error, "the cluster's DNS is not served");
            return std::future::pending().await;
        }
    };
    let scope =
        Scope { namespace: settings::NAMESPACE.to_owned(), query: format!("fieldSelector=metadata.name%3D{}", settings::NAME) };
    let settings = context.informers.select::<ConfigMap>(settings::NAME, scope);
    let recorder = Recorder::new(&context.tasks, &context.client.named("orch/dns"), "orch-dns", &context.node, &context.clock);
    let following = async {
        tokio::join!(feed::follow(&context.informers, &resolver), feed::follow_settings(&settings, &resolver, &recorder));
        std::future::pending::<()>().await;
    };
    tokio::join!(following, listen(&context, address, &resolver));
}

fn resolver(context: &PartContext, address: SocketAddr) -> Result<Arc<Resolver>, DnsError> {
    let domain = Name::from_text(&context.cluster_domain).filter(|domain| domain.labels() > 0);
    let domain = domain.ok_or_else(|| DnsError::Domain(context.cluster_domain.clone()))?;
    let ranges = vec![context.service_cidr.trunc(), context.cluster_cidr.trunc()];
    let serial = u32::try_from(context.clock.now().as_second()).unwrap_or(1);
    Ok(Arc::new(Resolver {
        zone: Zone { domain, server: address.ip(), ranges },
        index: RwLock::new(Index::new(serial)),
        hosts: ArcSwap::default(),
        forwarder: Forwarder::new(PathBuf::from(RESOLV_CONF), address, context.tasks.clone()),
    }))
}

/// Keeps the address and the sockets; tries again for ever, and says each cause once.
async fn listen(context: &PartContext, address: SocketAddr, resolver: &Arc<Resolver>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut said = None;
    let counters = Arc::new(Counters::new(address));
    loop {
        let tasks = context.tasks.child();
        let Err(error) = listen_once(context, address, resolver, &counters, &tasks, &mut said).await;
        tasks.cancel();
        let words = error.to_string();
        if said.as_ref() != Some(&words) {
            tracing::warn!(error = words, "the cluster's DNS is not served here; trying again");
            backoff.reset();
            said = Some(words);
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn listen_once(
    context: &PartContext,
    address: SocketAddr,
    resolver: &Arc<Resolver>,
    counters: &Arc<Counters>,
    tasks: &TaskGroup,
    said: &mut Option<String>,
) -> Result<std::convert::Infallible, DnsError> {
    let (mut removals, handle) = address::Removals::open(tasks)?;
    address::ensure(&handle, &context.node, address.ip()).await?;
    let busy = |error: io::Error| DnsError::Listen { address, why: cause(&error) };
    let udp = udp::bind(address).map_err(busy)?;
    let tcp = TcpListener::bind(address).await.map_err(busy)?;
    tracing::info!(%address, domain = %resolver.zone.domain, "the cluster's DNS answers");
    *said = None;
    let serve = |source| DnsError::Serve { address, source };
    tokio::select! {
        ended = udp::serve(udp, Arc::clone(resolver), Arc::clone(counters), tasks.clone()) => Err(serve(stopped(ended))),
        ended = tcp::serve(tcp, Arc::clone(resolver), Arc::clone(counters), tasks.clone()) => Err(serve(stopped(ended))),
        error = keep_address(&mut removals, &handle, context, address) => Err(error.into()),
    }
}

fn stopped(ended: io::Result<()>) -> io::Error {
    ended.err().unwrap_or_else(|| io::Error::other("it ended"))
}

fn cause(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::AddrInUse {
        return "another agent on this machine serves it, or a DNS server listens on port 53 of all addresses".to_owned();
    }
    error.to_string()
}

/// Puts the address back whenever somebody removes it.
async fn keep_address(
    removals: &mut address::Removals,
    handle: &Handle,
    context: &PartContext,
    address: SocketAddr,
) -> NetworkError {
    loop {
        removals.of(address.ip()).await;
        tracing::warn!(ip = %address.ip(), "the address of the cluster's DNS was removed; adding it again");
        if let Err(error) = address::ensure(handle, &context.node, address.ip()).await {
            return error;
        }
    }
}
