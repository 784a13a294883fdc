//! Joining a cluster with a token: the server is verified by the hash of its CA before anything is sent, then the node's own
//! certificates come by `CertificateSigningRequest`, as with the kubelet's TLS bootstrap. Keys are made here and never leave.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::watch;

use crate::client::https::Https;
use crate::client::{Client, ClientError};
use crate::http::BoxError;
use crate::http::connector::Endpoint;
use crate::http::tls::{ClientTls, TlsError, Trust, discover_ca};

use crate::pki::request::SigningRequest;
use crate::pki::{Certificate, Identity, PkiError, pem_blocks};
use crate::rt::clock::SharedClock;
use crate::rt::{Backoff, TaskGroup, files};

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How often a request is looked at while it waits for its certificate.
const POLL: Duration = Duration::from_millis(250);
/// How long a request may wait; an administrator may have to approve it.
const APPROVAL: Duration = Duration::from_secs(300);
/// How often the age of the certificates is looked at.
const RENEWAL_CHECK: Duration = Duration::from_secs(3_600);

/// How to join.
#[derive(Clone)]
pub struct JoinConfig {
    /// `https://server:6443`.
    pub server_url: String,
    /// The bearer token that may ask for a node's certificate.
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
    /// By which the kubelet server is known; a new value when it was renewed.
    pub serving: watch::Receiver<Identity>,
    /// Whose clients the kubelet server believes.
    pub client_ca_pem: String,
}

/// Why a node cannot join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The server does not answer, or is not the one of the token.
    #[error("cannot reach the server at {url}")]
    Server {
        url: String,
        #[source]
        source: BoxError,
    },
    /// The API refused something: the token may be wrong or expired.
    #[error("{step}")]
    Api {
        step: &'static str,
        #[source]
        source: ClientError,
    },
    /// Nobody signed the node's request in time, or it was denied.
    #[error("the certificate request {name} was not signed: {why}")]
    NotSigned { name: String, why: String },
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

/// What is kept on disk.
#[derive(Clone)]
struct Kept {
    server_ca_pem: String,
    client_ca_pem: String,
    client: Identity,
    serving: Identity,
}

/// Joins, or takes up the certificates that are kept from before; from then on they are renewed in tasks of `tasks`.
///
/// # Errors
/// [`JoinError`]; [`JoinError::Server`] may go away by itself.
pub async fn join(config: JoinConfig, tasks: &TaskGroup) -> Result<Joined, JoinError> {
    let folder = config.data_dir.join("pki");
    let now = config.clock.now();
    let kept = match load(&folder)? {
        Some(kept) if is_valid(&kept.client, now) && is_valid(&kept.serving, now) => kept,
        _ => {
            let kept = ask(&config, tasks).await?;
            save(&folder, &kept)?;
            kept
        }
    };
    let transport = transport(&config, &kept, tasks)?;
    let client = Client::new(Arc::clone(&transport) as _, "orch/kubelet");
    let (sender, serving) = watch::channel(kept.serving.clone());
    let joined = Joined { client: client.clone(), serving, client_ca_pem: kept.client_ca_pem.clone() };
    let token = tasks.token();
    let renewal = Renewal { config, folder, kept, transport, client, sender };
    tasks.critical("certificate renewal", async move {
        token.run_until_cancelled(renewal.run()).await;
    });
    Ok(joined)
}

fn transport(config: &JoinConfig, kept: &Kept, tasks: &TaskGroup) -> Result<Arc<Https>, JoinError> {
    let tls = client_tls(kept)?;
    Https::new(&config.server_url, tls, None, tasks.child()).map_err(|source| unreachable_server(config, source))
}

fn client_tls(kept: &Kept) -> Result<ClientTls, TlsError> {
    let trust = Trust::Roots(kept.server_ca_pem.clone());
    ClientTls::new(&trust, Some((&kept.client.chain_pem, &kept.client.key_pem)))
}

fn unreachable_server(config: &JoinConfig, source: BoxError) -> JoinError {
    JoinError::Server { url: config.server_url.clone(), source }
}

/// Asks for everything anew, with the token.
async fn ask(config: &JoinConfig, tasks: &TaskGroup) -> Result<Kept, JoinError> {
    let fail = |source| unreachable_server(config, source);
    let (trust, server_ca_pem) = match &config.ca_fingerprint {
        Some(fingerprint) => {
            let endpoint = Endpoint::parse(&config.server_url).map_err(fail)?;
            let pem = discover_ca(&endpoint.host, endpoint.port, fingerprint).await.map_err(fail)?;
            (Trust::Roots(pem.clone()), Some(pem))
        }
        None => {
            tracing::warn!("the token does not carry the hash of the server's CA: the server is not verified while joining");
            (Trust::Insecure, None)
        }
    };
    let tls = ClientTls::new(&trust, None)?;
    let with_token = Https::new(&config.server_url, tls, Some(&config.token), tasks.child()).map_err(fail)?;
    let with_token = Client::new(with_token, "orch/kubelet");
    let client = request(config, &with_token, CLIENT_SIGNER).await?;

    let trust = server_ca_pem.clone().map_or(Trust::Insecure, Trust::Roots);
    let tls = ClientTls::new(&trust, Some((&client.chain_pem, &client.key_pem)))?;
    let as_node = Https::new(&config.server_url, tls, None, tasks.child()).map_err(fail)?;
    let as_node = Client::new(as_node, "orch/kubelet");
    let read = |step| move |source| JoinError::Api { step, source };
    let authorities: ConfigMap = as_node
        .get("kube-system", "extension-apiserver-authentication")
        .await
        .map_err(read("cannot read the authority of the cluster's clients"))?;
    let client_ca_pem = text(&authorities, "client-ca-file");
    let server_ca_pem = match server_ca_pem {
        Some(pem) => pem,
        None => {
            let roots: ConfigMap = as_node
                .get("kube-system", "kube-root-ca.crt")
                .await
                .map_err(read("cannot read the authority of the cluster's servers"))?;
            text(&roots, "ca.crt")
        }
    };
    let serving = request(config, &as_node, SERVING_SIGNER).await?;
    Ok(Kept { server_ca_pem, client_ca_pem, client, serving })
}

fn text(config_map: &ConfigMap, key: &str) -> String {
    config_map.data.as_ref().and_then(|data| data.get(key)).cloned().unwrap_or_else(String::new)
}

/// Asks the cluster for a certificate and waits for it.
async fn request(config: &JoinConfig, client: &Client, signer: &str) -> Result<Identity, JoinError> {
    let user = format!("system:node:{}", config.node_name);
    let is_serving = signer == SERVING_SIGNER;
    let sans = if is_serving { vec![config.node_name.clone(), config.node_ip.to_string()] } else { Vec::new() };
    let signing = SigningRequest::new(&user, &["system:nodes".to_owned()], &sans)?;
    let usages = ["digital signature", if is_serving { "server auth" } else { "client auth" }];
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("node-csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(signing.csr_pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let step = "the cluster does not take the node's certificate request; is the token right?";
    let created = client.create(&csr).await.map_err(|source| JoinError::Api { step, source })?;
    let name = created.metadata.name.unwrap_or_else(String::new);
    let chain_pem = signed(client, &name).await?;
    Ok(Identity { chain_pem, key_pem: signing.key_pem })
}

async fn signed(client: &Client, name: &str) -> Result<String, JoinError> {
    let not_signed = |why: String| JoinError::NotSigned { name: name.to_owned(), why };
    let wait = async {
        loop {
            let csr: CertificateSigningRequest = client
                .get("", name)
                .await
                .map_err(|source| JoinError::Api { step: "cannot read the node's certificate request", source })?;
            let status = csr.status.unwrap_or_default();
            if let Some(certificate) = status.certificate.filter(|certificate| !certificate.0.is_empty()) {
                return String::from_utf8(certificate.0).map_err(|error| not_signed(error.to_string()));
            }
            let refusals = ["Denied", "Failed"];
            let mut conditions = status.conditions.into_iter().flatten();
            if let Some(refusal) = conditions.find(|condition| refusals.contains(&condition.type_.as_str())) {
                return Err(not_signed(refusal.message.unwrap_or(refusal.type_)));
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let waited = tokio::time::timeout(APPROVAL, wait).await;
    waited.unwrap_or_else(|_| Err(not_signed(format!("nobody approved it within {} s", APPROVAL.as_secs()))))
}

const FILES: [&str; 6] = ["server-ca.crt", "client-ca.crt", "client.crt", "client.key", "serving.crt", "serving.key"];

fn load(folder: &Path) -> Result<Option<Kept>, JoinError> {
    let mut texts = Vec::with_capacity(FILES.len());
    for name in FILES {
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => texts.push(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JoinError::File { path, source }),
        }
    }
    let mut texts = texts.into_iter();
    let mut next = || texts.next().unwrap_or_else(String::new);
    let (server_ca_pem, client_ca_pem) = (next(), next());
    let client = Identity { chain_pem: next(), key_pem: next() };
    let serving = Identity { chain_pem: next(), key_pem: next() };
    Ok(Some(Kept { server_ca_pem, client_ca_pem, client, serving }))
}

fn save(folder: &Path, kept: &Kept) -> Result<(), JoinError> {
    let texts = [
        &kept.server_ca_pem,
        &kept.client_ca_pem,
        &kept.client.chain_pem,
        &kept.client.key_pem,
        &kept.serving.chain_pem,
        &kept.serving.key_pem,
    ];
    for (name, text) in FILES.iter().zip(texts) {
        let path = folder.join(name);
        files::write(&path, text.as_bytes(), 0o600).map_err(|source| JoinError::File { path, source })?;
    }
    Ok(())
}

fn lifetime(identity: &Identity) -> Option<(Timestamp, Timestamp)> {
    let blocks = pem_blocks(&identity.chain_pem, "CERTIFICATE").ok()?;
    let certificate = Certificate::parse(blocks.first()?).ok()?;
    Some((certificate.not_before, certificate.not_after))
}

fn is_valid(identity: &Identity, now: Timestamp) -> bool {
    lifetime(identity).is_some_and(|(from, until)| from <= now && now < until)
}

/// Whether four fifths of a certificate's life are over.
fn is_old(identity: &Identity, now: Timestamp) -> bool {
    lifetime(identity).is_none_or(|(from, until)| {
        let (life, age) = (until.duration_since(from).as_secs(), now.duration_since(from).as_secs());
        age.saturating_mul(5) >= life.saturating_mul(4)
    })
}

struct Renewal {
    config: JoinConfig,
    folder: PathBuf,
    kept: Kept,
    transport: Arc<Https>,
    client: Client,
    sender: watch::Sender<Identity>,
}

impl Renewal {
    /// Renews the certificates in time, for ever.
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(600));
        loop {
            match self.renew().await {
                Ok(()) => {
                    backoff.reset();
                    tokio::time::sleep(RENEWAL_CHECK).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the node's certificates were not renewed; trying again");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), JoinError> {
        let now = self.config.clock.now();
        if is_old(&self.kept.client, now) {
            self.kept.client = request(&self.config, &self.client, CLIENT_SIGNER).await?;
            save(&self.folder, &self.kept)?;
            self.transport.replace_identity(client_tls(&self.kept)?);
        }
        if is_old(&self.kept.serving, now) {
            self.kept.serving = request(&self.config, &self.client, SERVING_SIGNER).await?;
            save(&self.folder, &self.kept)?;
            self.sender.send_replace(self.kept.serving.clone());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Ca;

    fn signed_identity(ca: &Ca, now: Timestamp) -> Identity {
        let signing = SigningRequest::new("system:node:n1", &["system:nodes".to_owned()], &[]).unwrap();
        let day = Duration::from_secs(86_400);
        let chain_pem = ca.sign_csr(&signing.csr_pem, day, &["client auth", "digital signature"], now).unwrap();
        Identity { chain_pem, key_pem: signing.key_pem }
    }

    #[test]
    fn requests_are_signed_kept_and_renewed_in_time() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ca = Ca::generate("test", now).unwrap();
        let identity = signed_identity(&ca, now);
        let table = [(0, true, false), (60_000, true, false), (72_000, true, true), (90_000, false, true)];
        for (age, valid, old) in table {
            let later = now + Duration::from_secs(age);
            assert_eq!((is_valid(&identity, later), is_old(&identity, later)), (valid, old), "after {age} s");
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(load(directory.path()).unwrap().is_none());
        let kept = Kept {
            server_ca_pem: ca.certificate_pem().to_owned(),
            client_ca_pem: ca.certificate_pem().to_owned(),
            client: identity.clone(),
            serving: identity,
        };
        save(directory.path(), &kept).unwrap();
        let again = load(directory.path()).unwrap().unwrap();
        assert_eq!(again.serving.key_pem, kept.serving.key_pem);
        client_tls(&again).unwrap();
    }
}
