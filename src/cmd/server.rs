//! `orch server`: store, API server, controllers, scheduler and, unless told otherwise, a node, in one process.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Secret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certificates;
use super::error::CmdError;
use super::loopback::Loopback;
use super::node::{self, NodeParts};
use super::settings::{Component, ServerSettings};
use super::signer::CaSigner;
use super::token::Token;
use super::tokens::CLUSTER_TOKEN;
use super::{host, notify, run};
use crate::admission::{Chain, TolerationSeconds};
use crate::agent::bootstrap as bootstrap_agent;
use crate::auth::authn::StaticToken;
use crate::auth::{Authorizer, UserInfo};
use crate::client::informer::{Change, Informer, Informers, Scope};
use crate::client::kubeconfig::Kubeconfig;
use crate::controllers::{self, ControllerConfig, node_identity};
use crate::http::listener::Listener;
use crate::http::tls::{ClientTls, Trust};
use crate::kinds::Kinds;
use crate::pki::{self, Pki};
use crate::registry::{Reader, Registry};
use crate::rt::clock::SharedClock;
use crate::rt::{SystemClock, TaskGroup};
use crate::scheduler::{self, SchedulerConfig};
use crate::server::{Server, ServerConfig, ServerParts, bootstrap, identities};
use crate::store::Store;
use crate::store::raft::{OpenOptions, RaftStore};

/// Length of the prefix of the part of the cluster range that a node gets.
const NODE_CIDR_PREFIX: u8 = 24;

/// Runs until a signal.
///
/// # Errors
/// [`CmdError`], which says what to do.
pub async fn run(settings: ServerSettings) -> Result<(), CmdError> {
    if !settings.disable_agent && !host::is_root() {
        return Err(CmdError::NotRoot);
    }
    if !settings.disable_agent {
        node::check(&settings.node)?;
    }
    let tasks = TaskGroup::new();
    let outcome = start(&settings, &tasks).await;
    if let Err(error) = outcome {
        tasks.shutdown(Duration::from_secs(2)).await;
        return Err(error);
    }
    notify::send("READY=1");
    run::until_stopped(&tasks).await
}

async fn start(settings: &ServerSettings, tasks: &TaskGroup) -> Result<(), CmdError> {
    let data_dir = &settings.common.data_dir;
    std::fs::create_dir_all(data_dir).map_err(|source| CmdError::DataDir { path: data_dir.clone(), source })?;
    let clock = SystemClock::start(tasks);
    let roots = Arc::new(Pki::open(&data_dir.join("pki"), clock.now())?);
    let token = Token::of_server(&data_dir.join("token"), settings.token.as_deref(), roots.server_ca.fingerprint())
        .map_err(CmdError::Setting)?;
    let addresses = Addresses::of(settings);
    let listener = listen(settings, &roots, &addresses, &clock, tasks).await?;
    let options = OpenOptions::new(data_dir.join("store"), Arc::clone(&clock), tasks.clone());
    let store = RaftStore::open(options).await.map_err(|error| CmdError::Store(error.into()))?;
    let parts = Parts { settings, roots, token, addresses, clock };
    let server = parts.server(store, tasks)?;
    tasks.critical("api listener", listener.serve(Arc::clone(&server) as Arc<_>, tasks.child()));
    bootstrap::run(&server).await?;
    tasks.critical("api server identity", bootstrap::identity::follow(Arc::clone(&server), tasks.token()));
    parts.write_kubeconfig()?;
    lead(&server, &parts, tasks);
    tasks.critical("node identities", identities::run(Arc::clone(&server)));
    parts.keep_token(&server, tasks);
    tracing::info!(address = %parts.addresses.api, kubeconfig = %settings.write_kubeconfig.display(), "the API server is ready");
    if !settings.disable_agent {
        parts.start_node(&server, tasks).await?;
    }
    Ok(())
}

/// Where this server is reached.
struct Addresses {
    /// What the API listens on.
    api: SocketAddr,
    /// The address that nodes and Service endpoints use.
    node: IpAddr,
}

impl Addresses {
    fn of(settings: &ServerSettings) -> Self {
        let node = settings
            .node
            .node_ip
            .unwrap_or_else(|| if settings.bind_address.is_unspecified() { host::address() } else { settings.bind_address });
        Self { api: SocketAddr::new(settings.bind_address, settings.https_listen_port), node }
    }

    /// The names that the API's certificate must have.
    fn sans(&self, settings: &ServerSettings, config: &ServerConfig) -> Vec<String> {
        let own = host::addresses().into_iter().chain([self.node, config.kubernetes_service_ip()]).map(|ip| ip.to_string());
        let extra = own.chain([host::name()]).chain(settings.tls_san.iter().cloned());
        pki::api_server_sans(&settings.cluster.cluster_domain, extra)
    }
}

fn server_config(settings: &ServerSettings, addresses: &Addresses) -> ServerConfig {
    ServerConfig {
        cluster_domain: settings.cluster.cluster_domain.clone(),
        cluster_cidr: IpNet::V4(settings.cluster.cluster_cidr),
        service_cidr: IpNet::V4(settings.cluster.service_cidr),
        cluster_dns: settings.cluster.cluster_dns(),
        advertise: SocketAddr::new(addresses.node, settings.https_listen_port),
        anonymous: true,
    }
}

async fn listen(
    settings: &ServerSettings,
    roots: &Arc<Pki>,
    addresses: &Addresses,
    clock: &SharedClock,
    tasks: &TaskGroup,
) -> Result<Listener, CmdError> {
    let sans = addresses.sans(settings, &server_config(settings, addresses));
    let identity = certificates::serving(roots, "orch-apiserver", sans, clock, tasks)?;
    let tls = certificates::server_tls(identity, roots.client_ca.certificate_pem(), tasks)?;
    let listener = Listener::bind(addresses.api, Some(tls)).await;
    listener.map_err(|error| CmdError::listen(addresses.api, &error, "https-listen-port"))
}

/// What the steps of starting share.
struct Parts<'a> {
    settings: &'a ServerSettings,
    roots: Arc<Pki>,
    token: Token,
    addresses: Addresses,
    clock: SharedClock,
}

impl Parts<'_> {
    fn server(&self, store: Arc<dyn Store>, tasks: &TaskGroup) -> Result<Arc<Server>, CmdError> {
        let authorizer = Arc::new(Authorizer::new(Arc::clone(&store)));
        let failure = &self.settings.failure;
        let tolerations = TolerationSeconds {
            not_ready: failure.default_not_ready_toleration_seconds,
            unreachable: failure.default_unreachable_toleration_seconds,
        };
        let chain = Chain::new(Reader::new(Arc::clone(&store)), Arc::clone(&authorizer));
        let admit = Arc::new(chain.with_toleration_seconds(tolerations));
        let registry = Registry::new(store, Arc::new(Kinds::builtin()), admit, Arc::clone(&self.clock));
        let registry = registry.with_node_ports(self.settings.cluster.service_node_port_range);
        let to_nodes = self.roots.client("kube-apiserver-kubelet-client", "", self.clock.now())?;
        let trust = Trust::Roots(self.roots.server_ca.certificate_pem().to_owned());
        let bootstrapper = UserInfo::new("system:bootstrap:server", &["system:bootstrappers", "system:bootstrappers:orch"]);
        Ok(Server::new(ServerParts {
            registry,
            authorizer,
            config: server_config(self.settings, &self.addresses),
            static_tokens: vec![StaticToken { token: self.token.secret.clone(), user: bootstrapper }],
            token_key: Arc::clone(&self.roots.token_key),
            client_ca: Arc::clone(&self.roots.client_ca),
            server_ca: Arc::clone(&self.roots.server_ca),
            node_tls: ClientTls::new(&trust, Some((&to_nodes.chain_pem, &to_nodes.key_pem)))?,
            tasks: tasks.child(),
        }))
    }

    fn write_kubeconfig(&self) -> Result<(), CmdError> {
        let admin = self.roots.client("system:admin", "system:masters", self.clock.now())?;
        let ip = if self.addresses.api.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.addresses.api.ip() };
        let path = &self.settings.write_kubeconfig;
        let kubeconfig = Kubeconfig {
            name: "default".to_owned(),
            server: format!("https://{}", SocketAddr::new(ip, self.addresses.api.port())),
            ca_pem: self.roots.server_ca.certificate_pem().to_owned(),
            client_certificate_pem: admin.chain_pem,
            client_key_pem: admin.key_pem,
        };
        kubeconfig.write(path).map_err(|source| CmdError::Kubeconfig { path: path.clone(), source })
    }
}

impl Parts<'_> {
    /// The node of this process. It is an agent like all others but for its transport.
    async fn start_node(&self, server: &Arc<Server>, tasks: &TaskGroup) -> Result<(), CmdError> {
        let node = &self.settings.node;
        let name = node.node_name.clone().unwrap_or_else(host::name);
        let data_dir = self.settings.common.data_dir.join("agent");
        own_name(server, &name, &data_dir).await?;
        let user = UserInfo::new(&format!("system:node:{name}"), &["system:nodes"]);
        let sans = vec![name.clone(), self.addresses.node.to_string(), "127.0.0.1".to_owned()];
        let parts = NodeParts {
            settings: node,
            cluster: self.settings.cluster.facts(),
            data_dir,
            bind_address: self.settings.bind_address,
            node_ip: self.addresses.node,
            is_control_plane: true,
            client: Loopback::client(server, user, "orch/agent"),
            uplink: None,
            serving: certificates::serving(&self.roots, &format!("system:node:{name}"), sans, &self.clock, tasks)?,
            client_ca_pem: self.roots.client_ca.certificate_pem().to_owned(),
            name,
            clock: Arc::clone(&self.clock),
        };
        node::start(parts, tasks).await
    }
}

impl Parts<'_> {
    /// Keeps `DATA_DIR/token` what the cluster's token is: `orch token rotate` may change it on any server.
    fn keep_token(&self, server: &Arc<Server>, tasks: &TaskGroup) {
        let user = UserInfo::new("system:apiserver", &["system:masters"]);
        let query = format!("fieldSelector=metadata.name%3D{CLUSTER_TOKEN}");
        let scope = Scope { namespace: "kube-system".to_owned(), query };
        let secrets = Informer::<Secret>::start(tasks, Loopback::client(server, user, "orch/token"), scope);
        let (path, hash) = (self.settings.common.data_dir.join("token"), self.roots.server_ca.fingerprint().to_owned());
        let token = tasks.token();
        tasks.critical("token file", async move {
            let mut changes = secrets.subscribe();
            while let Some(Some(change)) = token.run_until_cancelled(changes.next()).await {
                let Change::Applied { new, .. } = change else { continue };
                let data = new.data.as_ref().and_then(|data| data.get("token"));
                let Some(secret) = data.and_then(|bytes| std::str::from_utf8(&bytes.0).ok()) else { continue };
                if let Err(error) = Token::of_server(&path, Some(secret), &hash) {
                    tracing::error!(error, "the changed token was not written");
                }
            }
        });
    }
}

/// Makes sure that the name of this server's own node is this machine's.
async fn own_name(server: &Arc<Server>, name: &str, data_dir: &Path) -> Result<(), CmdError> {
    let password = bootstrap_agent::node_password(data_dir).map_err(|error| CmdError::Node(error.into()))?;
    let hash = pki::hex(ring::digest::digest(&ring::digest::SHA256, password.as_bytes()).as_ref());
    let user = UserInfo::new("system:apiserver", &["system:masters"]);
    let client = Loopback::client(server, user, "orch/node-identity");
    match client.create(&node_identity::secret(name, &hash)).await {
        Err(error) if error.is_already_exists() => {}
        created => return created.map(drop).map_err(CmdError::Api),
    }
    let kept: Secret = client.get("kube-system", &node_identity::secret_name(name)).await?;
    if node_identity::hash_of(&kept) == hash {
        return Ok(());
    }
    Err(CmdError::Setting(format!(
        "the node name {name:?} is taken by another machine. Give this one another name (--node-name), or, if that machine is gone or was \
         installed anew, free the name with `orch node replace {name}` and start again"
    )))
}

/// Runs controllers and scheduler while this server is the leader: no leases, and a new leader starts them at once.
fn lead(server: &Arc<Server>, parts: &Parts<'_>, tasks: &TaskGroup) {
    let (server, clock, group, token) = (Arc::clone(server), Arc::clone(&parts.clock), tasks.clone(), tasks.token());
    let roots = Arc::clone(&parts.roots);
    let node_grace = parts.settings.failure.node_monitor_grace_period;
    let service_lb = !parts.settings.disable.contains(&Component::ServiceLb);
    let mut leadership = server.registry.store().leadership();
    tasks.critical("leadership", async move {
        loop {
            if !becomes(&mut leadership, true, &token).await {
                return;
            }
            tracing::info!("leading: controllers and scheduler start");
            let term = group.child();
            start_controllers(&server, &roots, &clock, (node_grace, service_lb), &term);
            let lost = becomes(&mut leadership, false, &token).await;
            term.shutdown(Duration::from_secs(5)).await;
            if !lost {
                return;
            }
        }
    });
}

/// Waits until leadership is `wanted`; false when the server stops first.
async fn becomes(leadership: &mut watch::Receiver<bool>, wanted: bool, token: &CancellationToken) -> bool {
    matches!(token.run_until_cancelled(leadership.wait_for(|leads| *leads == wanted)).await, Some(Ok(_)))
}

fn start_controllers(
    server: &Arc<Server>,
    roots: &Pki,
    clock: &SharedClock,
    (node_grace, service_lb): (Duration, bool),
    term: &TaskGroup,
) {
    let client = Loopback::client(server, UserInfo::new("system:kube-controller-manager", &[]), "orch/controllers");
    let informers = Informers::new(term, client.clone());
    let kinds = Arc::clone(server.registry.kinds());
    let signer =
        CaSigner { client_ca: Arc::clone(&roots.client_ca), server_ca: Arc::clone(&roots.server_ca), clock: Arc::clone(clock) };
    let config = ControllerConfig {
        informers: informers.clone(),
        clock: Arc::clone(clock),
        kinds,
        root_ca_pem: roots.server_ca.certificate_pem().to_owned(),
        cluster_cidr: server.config.cluster_cidr,
        node_cidr_prefix: NODE_CIDR_PREFIX,
        node_grace,
        service_lb,
        signer: Some(Arc::new(signer)),
    };
    controllers::run(term, client, config);
    let client = Loopback::client(server, UserInfo::new("system:kube-scheduler", &[]), "orch/scheduler");
    scheduler::run(term, client, SchedulerConfig { informers, clock: Arc::clone(clock) });
}
