//! Whom to ask: by stub domain, else the servers that the user names, else the host's own resolvers as `/etc/resolv.conf` has them
//! now. Never ourselves.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::super::name::Name;

/// How often the file is looked at while questions are forwarded.
const LOOK: Duration = Duration::from_secs(1);
/// How long a server that failed is asked last.
const PENALTY: Duration = Duration::from_secs(10);

/// What the user says about upstreams.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(in super::super) struct Routes {
    /// Servers by the domain that they are asked about.
    pub(in super::super) stubs: Vec<(Name, Vec<SocketAddr>)>,
    /// Servers for all else; none means the host's.
    pub(in super::super) servers: Vec<SocketAddr>,
}

struct Host {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Arc<[SocketAddr]>,
}

/// The upstreams and how they did.
pub(super) struct Upstreams {
    resolv_conf: PathBuf,
    own: SocketAddr,
    host: Mutex<Host>,
    failed: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Upstreams {
    /// The upstreams of a host whose DNS server at `own` is us.
    pub(super) fn new(resolv_conf: PathBuf, own: SocketAddr) -> Self {
        let host = Host { looked: None, modified: None, servers: Arc::default() };
        Self { resolv_conf, own, host: Mutex::new(host), failed: Mutex::default() }
    }

    /// The servers to ask about a name, those that failed lately last.
    pub(super) async fn of(&self, name: &Name, routes: &Routes, now: Instant) -> Vec<SocketAddr> {
        let stubs = routes.stubs.iter().filter(|(domain, _)| name.below(domain).is_some());
        let mut servers = match stubs.max_by_key(|(domain, _)| domain.labels()) {
            Some((_, servers)) => servers.clone(),
            None if !routes.servers.is_empty() => routes.servers.clone(),
            None => self.host_servers(now).await.to_vec(),
        };
        servers.retain(|server| *server != self.own);
        let mut failed = self.failed.lock();
        failed.retain(|_, until| *until > now);
        servers.sort_by_key(|server| failed.contains_key(server));
        servers
    }

    /// Notes how a server did.
    pub(super) fn judge(&self, server: SocketAddr, is_well: bool, now: Instant) {
        let mut failed = self.failed.lock();
        if is_well {
            failed.remove(&server);
        } else {
            failed.insert(server, now + PENALTY);
        }
    }

    async fn host_servers(&self, now: Instant) -> Arc<[SocketAddr]> {
        let known = {
            let mut host = self.host.lock();
            if host.looked.is_some_and(|looked| now < looked + LOOK) {
                return Arc::clone(&host.servers);
            }
            host.looked = Some(now);
            host.modified
        };
        let modified = tokio::fs::metadata(&self.resolv_conf).await.and_then(|file| file.modified()).ok();
        if modified.is_none() || modified != known {
            let text = tokio::fs::read_to_string(&self.resolv_conf).await;
            let servers: Arc<[SocketAddr]> = text.iter().flat_map(|text| parse(text, self.own)).collect();
            if servers.is_empty() {
                tracing::warn!(path = %self.resolv_conf.display(), "the host has no resolver: names outside the cluster get no answer");
            } else {
                tracing::info!(?servers, "names outside the cluster are asked of the host's resolvers");
            }
            let mut host = self.host.lock();
            host.modified = modified;
            host.servers = servers;
        }
        Arc::clone(&self.host.lock().servers)
    }
}

fn parse(text: &str, own: SocketAddr) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        let address = address.split('%').next()?.parse::<IpAddr>().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).filter(|server| *server != own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let own: SocketAddr = "10.43.0.10:53".parse().unwrap();
        std::fs::write(&file, "# a\nnameserver 10.43.0.10\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions x\n").unwrap();
        let upstreams = Upstreams::new(file.clone(), own);
        let server = |text: &str| text.parse::<SocketAddr>().unwrap();
        let stub = |domain: &str, ip: &str| (Name::from_text(domain).unwrap(), vec![server(ip)]);
        let mut routes =
            Routes { stubs: vec![stub("acme.local", "1.1.1.1:53"), stub("eu.acme.local", "2.2.2.2:53")], servers: vec![] };
        let start = Instant::now();
        let ask = async |name: &str, routes: &Routes, now| {
            let servers = upstreams.of(&Name::from_text(name).unwrap(), routes, now).await;
            servers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(ask("www.example.com", &routes, start).await, ["192.0.2.1:53", "192.0.2.2:53"]);
        assert_eq!(ask("www.acme.local", &routes, start).await, ["1.1.1.1:53"]);
        assert_eq!(ask("www.eu.acme.local", &routes, start).await, ["2.2.2.2:53"]);
        upstreams.judge(server("192.0.2.1:53"), false, start);
        assert_eq!(ask("a.com", &routes, start).await, ["192.0.2.2:53", "192.0.2.1:53"]);
        std::fs::write(&file, "nameserver 192.0.2.9\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        std::fs::File::open(&file).unwrap().set_modified(later).unwrap();
        assert_eq!(ask("a.com", &routes, start + LOOK).await, ["192.0.2.9:53"]);
        routes.servers = vec![server("9.9.9.9:53"), own];
        assert_eq!(ask("a.com", &routes, start).await, ["9.9.9.9:53"]);
    }
}
