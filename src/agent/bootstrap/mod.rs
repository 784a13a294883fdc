//! Joining a cluster with a token: the server is verified by the hash of its CA before anything is sent, then the node's own
//! certificates come by `CertificateSigningRequest`, as with the kubelet's TLS bootstrap, and the cluster's settings with them.
//! Keys are made here and never leave.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use tokio::sync::watch;

use crate::client::https::{Credentials, Https};
use crate::client::servers::Servers;
use crate::client::{Client, ClientError};
use crate::http::BoxError;
use crate::http::connector::Endpoint;
use crate::http::tls::{ClientTls, TlsError, Trust, discover_ca};
use crate::pki::{Identity, PkiError};
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

mod kept;
mod renewal;
mod request;

pub use kept::{ClusterFacts, node_password};

use kept::Kept;
use renewal::Renewal;
use request::{CLIENT_SIGNER, SERVING_SIGNER, request};

/// Time for the servers to say, at a start with kept certificates, that this node was removed.
const REMOVAL_CHECK: Duration = Duration::from_secs(5);
/// Where servers write the settings that are the same on every node.
const CLUSTER: &str = "orch-cluster";

/// How to join.
#[derive(Clone)]
pub struct JoinConfig {
    /// `https://server:6443`, one or several.
    pub server_urls: Vec<String>,
    /// The bearer token that may ask for a node's certificate; "" for a node that has joined.
    pub token: String,
    /// SHA-256 of the CA's public key (hexadecimal), if the token carries it.
    pub ca_fingerprint: Option<String>,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// `DATA/agent`: certificates are kept in its folder `pki`.
    pub data_dir: PathBuf,
    pub clock: SharedClock,
}

/// A node that has joined.
pub struct Joined {
    /// Speaks to the API as this node; its certificate is renewed underneath.
    pub client: Client,
    /// The same connection, for what is no call of the API.
    pub uplink: Arc<Https>,
    /// By which the kubelet server is known; a new value when it was renewed.
    pub serving: watch::Receiver<Identity>,
    /// Whose clients the kubelet server believes.
    pub client_ca_pem: String,
    pub cluster: ClusterFacts,
}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No server answers, or none is the one of the token.
    #[error("cannot reach the server at {url}")]
    Server {
        url: String,
        #[source]
        source: BoxError,
    },
    /// The API does not know the token.
    #[error(
        "the token is not one of this cluster, or it has expired or was changed: on a server, `orch token create --print-join-command` \
         prints a command with a new one"
    )]
    Token(#[source] ClientError),
    /// The API refused something.
    #[error("{step}")]
    Api {
        step: &'static str,
        #[source]
        source: ClientError,
    },
    /// Nobody signed the node's request in time, or it was denied.
    #[error("the certificate request {name} was not signed: {why}")]
    NotSigned { name: String, why: String },
    /// There is nothing to join with.
    #[error(
        "node {name:?} has not joined yet, and there is no token: on a server, `orch token create --print-join-command` prints how"
    )]
    NoToken { name: String },
    /// The node was removed from the cluster, and there is no token to join with again.
    #[error("node {name:?} was removed from the cluster")]
    Removed { name: String },
    /// What the cluster says of itself cannot be used.
    #[error("the cluster's settings (ConfigMap kube-system/{CLUSTER}) cannot be used: {0}")]
    Cluster(String),
    /// A certificate or key is damaged.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// TLS cannot be set up with them.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The node's keys cannot be kept.
    #[error("cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl JoinError {
    /// Whether it may go away by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Server { .. } | Self::Api { source: ClientError::Transport { .. }, .. } => true,
            Self::Api { source, .. } => source.api().is_some_and(|error| error.code >= 500 || error.code == 429),
            _ => false,
        }
    }
}

/// Joins, or takes up the certificates that are kept from before; from then on they are renewed in tasks of `tasks`.
///
/// # Errors
/// [`JoinError`]; it says itself whether it may go away.
pub async fn join(config: JoinConfig, tasks: &TaskGroup) -> Result<Joined, JoinError> {
    let folder = config.data_dir.join("pki");
    let given = endpoints(&config.server_urls)?;
    let now = config.clock.now();
    let kept = Kept::load(&folder)?.filter(|kept| kept.serves(&config.node_name, config.ca_fingerprint.as_deref(), now));
    let taken_up = match kept {
        Some(kept) => take_up(&config, &given, kept, tasks).await?,
        None => None,
    };
    let (kept, transport) = match taken_up {
        Some(taken_up) => taken_up,
        None => {
            let (kept, cluster) = ask(&config, &given, tasks).await?;
            kept::save_cluster(&folder, &cluster)?;
            kept.save(&folder)?;
            let transport = transport(&config, &given, &kept, tasks)?;
            (kept, transport)
        }
    };
    let client = Client::new(Arc::clone(&transport) as _, "orch/kubelet");
    let cluster = match kept::load_cluster(&folder)? {
        Some(cluster) => cluster,
        None => {
            let cluster = read_cluster(&client).await?;
            kept::save_cluster(&folder, &cluster)?;
            cluster
        }
    };
    let (sender, serving) = watch::channel(kept.serving.clone());
    let uplink = Arc::clone(&transport);
    let joined = Joined { client: client.clone(), uplink, serving, client_ca_pem: kept.client_ca_pem.clone(), cluster };
    let learning = renewal::learn(client.clone(), Arc::clone(&transport), given, config.data_dir.clone(), tasks.clone());
    let renewal = Renewal { config, folder, kept, transport, client, sender, tasks: tasks.clone() };
    let (renewing, learned) = (tasks.token(), tasks.token());
    tasks.critical("certificate renewal", async move {
        renewing.run_until_cancelled(renewal.run()).await;
    });
    tasks.critical("server list", async move {
        learned.run_until_cancelled(learning).await;
    });
    Ok(joined)
}

fn endpoints(urls: &[String]) -> Result<Vec<Endpoint>, JoinError> {
    let parse = |url: &String| Endpoint::parse(url).map_err(|source| JoinError::Server { url: url.clone(), source });
    urls.iter().map(parse).collect()
}

/// Takes up kept certificates, unless the cluster says that they are good no more; then `None` if there is a token to join anew.
async fn take_up(
    config: &JoinConfig,
    given: &[Endpoint],
    kept: Kept,
    tasks: &TaskGroup,
) -> Result<Option<(Kept, Arc<Https>)>, JoinError> {
    let transport = transport(config, given, &kept, tasks)?;
    let client = Client::new(Arc::clone(&transport) as _, "orch/kubelet");
    // Whether it answers does not matter: a node goes on while the API is away.
    let asked = tokio::time::timeout(REMOVAL_CHECK, client.get::<Node>("", &config.node_name)).await;
    tracing::debug!(answered = matches!(asked, Ok(Ok(_))), "asked for the node");
    if !transport.removed().is_cancelled() {
        return Ok(Some((kept, transport)));
    }
    if config.token.is_empty() {
        return Err(JoinError::Removed { name: config.node_name.clone() });
    }
    tracing::warn!(node = config.node_name, "the node was removed from the cluster; joining again with the token");
    Ok(None)
}

/// The connection as this node: to the servers given, and those known from before.
fn transport(config: &JoinConfig, given: &[Endpoint], kept: &Kept, tasks: &TaskGroup) -> Result<Arc<Https>, JoinError> {
    let mut all = given.to_vec();
    // One that does not parse any more is no loss: the list comes anew.
    all.extend(kept::load_servers(&config.data_dir)?.iter().filter_map(|url| Endpoint::parse(url).ok()));
    let servers = Servers::new(&config.node_name, all);
    let made = Https::to_servers(servers, client_tls(kept)?, Credentials::default(), tasks.child());
    made.map_err(|source| unreachable_server(config, source))
}

fn client_tls(kept: &Kept) -> Result<ClientTls, TlsError> {
    let trust = Trust::Roots(kept.server_ca_pem.clone());
    ClientTls::new(&trust, Some((&kept.client.chain_pem, &kept.client.key_pem)))
}

fn unreachable_server(config: &JoinConfig, source: BoxError) -> JoinError {
    JoinError::Server { url: config.server_urls.join(", "), source }
}

/// The first server that shows the CA of the token, and that CA's certificate.
async fn discover(config: &JoinConfig, given: &[Endpoint], fingerprint: &str) -> Result<String, JoinError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut failure: BoxError = "no server is given".into();
    for endpoint in given {
        match tokio::time::timeout(PATIENCE, discover_ca(&endpoint.host, endpoint.port, fingerprint)).await {
            Ok(Ok(pem)) => return Ok(pem),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = format!("no answer from {} within {} s", endpoint.authority(), PATIENCE.as_secs()).into(),
        }
    }
    Err(unreachable_server(config, failure))
}

/// Asks for everything anew, with the token.
async fn ask(config: &JoinConfig, given: &[Endpoint], tasks: &TaskGroup) -> Result<(Kept, ClusterFacts), JoinError> {
    let fail = |source| unreachable_server(config, source);
    if config.token.is_empty() {
        return Err(JoinError::NoToken { name: config.node_name.clone() });
    }
    let server_ca_pem = match &config.ca_fingerprint {
        Some(fingerprint) => Some(discover(config, given, fingerprint).await?),
        None => {
            tracing::warn!("the token does not carry the hash of the server's CA: the server is not verified while joining");
            None
        }
    };
    let trust = server_ca_pem.clone().map_or(Trust::Insecure, Trust::Roots);
    let servers = || Servers::new(&config.node_name, given.to_vec());
    let password = node_password(&config.data_dir)?;
    let credentials = Credentials::bearer(&config.token).and_then(|bearer| bearer.with_node_password(&password)).map_err(fail)?;
    let group = tasks.child();
    let with_token = Https::to_servers(servers(), ClientTls::new(&trust, None)?, credentials, group.clone()).map_err(fail)?;
    let asked = request(config, &Client::new(with_token, "orch/kubelet"), CLIENT_SIGNER, &group).await;
    let client = asked.map_err(|error| match error {
        JoinError::Api { source, .. } if source.api().is_some_and(|refusal| refusal.code == 401) => JoinError::Token(source),
        error => error,
    })?;

    let tls = ClientTls::new(&trust, Some((&client.chain_pem, &client.key_pem)))?;
    let as_node = Https::to_servers(servers(), tls, Credentials::default(), group.clone()).map_err(fail)?;
    let as_node = Client::new(as_node, "orch/kubelet");
    let root_ca = async {
        match server_ca_pem {
            Some(pem) => Ok(pem),
            None => read_text(&as_node, "kube-root-ca.crt", "ca.crt").await,
        }
    };
    let (client_ca_pem, server_ca_pem, cluster, serving) = tokio::try_join!(
        read_text(&as_node, "extension-apiserver-authentication", "client-ca-file"),
        root_ca,
        read_cluster(&as_node),
        request(config, &as_node, SERVING_SIGNER, &group),
    )?;
    group.cancel();
    Ok((Kept { server_ca_pem, client_ca_pem, client, serving }, cluster))
}

async fn read_data(client: &Client, name: &str) -> Result<BTreeMap<String, String>, JoinError> {
    let step = "cannot read the cluster's settings";
    let read = client.get::<ConfigMap>("kube-system", name).await.map_err(|source| JoinError::Api { step, source })?;
    Ok(read.data.unwrap_or_else(BTreeMap::new))
}

async fn read_text(client: &Client, name: &str, key: &str) -> Result<String, JoinError> {
    let mut data = read_data(client, name).await?;
    data.remove(key).ok_or_else(|| JoinError::Cluster(format!("{key} is missing in the ConfigMap kube-system/{name}")))
}

async fn read_cluster(client: &Client) -> Result<ClusterFacts, JoinError> {
    ClusterFacts::parse(&read_data(client, CLUSTER).await?).map_err(JoinError::Cluster)
}
