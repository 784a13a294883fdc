//! What a node keeps of its joining: certificates and keys, the cluster's settings, the servers, and its own password.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use jiff::Timestamp;

use super::JoinError;
use crate::http::tls;
use crate::pki::{Certificate, Identity, hex, pem_blocks};
use crate::rt::{files, random};

const FILES: [&str; 6] = ["server-ca.crt", "client-ca.crt", "client.crt", "client.key", "serving.crt", "serving.key"];
const CLUSTER_FILE: &str = "cluster.json";
const SERVERS_FILE: &str = "servers.json";
const PASSWORD_FILE: &str = "node-password";
/// Bytes of a password, which is written in hexadecimal.
const PASSWORD_BYTES: usize = 16;

/// The settings that are the same on every node; a server says them, none is a flag of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterFacts {
    /// The addresses of all pods.
    pub cluster_cidr: Ipv4Net,
    /// The addresses of all Services.
    pub service_cidr: Ipv4Net,
    /// Address of the cluster's DNS.
    pub cluster_dns: IpAddr,
    /// `cluster.local`.
    pub cluster_domain: String,
}

impl ClusterFacts {
    /// Reads them from the data of the `ConfigMap` `kube-system/orch-cluster`: the names are those of the server's flags.
    ///
    /// # Errors
    /// The name that is missing or has a value that cannot be.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        fn value<T: std::str::FromStr>(data: &BTreeMap<String, String>, name: &str) -> Result<T, String> {
            let text = data.get(name).ok_or_else(|| format!("{name} is missing"))?;
            text.parse().map_err(|_| format!("{name} cannot be {text:?}"))
        }
        Ok(Self {
            cluster_cidr: value(data, "cluster-cidr")?,
            service_cidr: value(data, "service-cidr")?,
            cluster_dns: value(data, "cluster-dns")?,
            cluster_domain: value(data, "cluster-domain")?,
        })
    }

    /// The same, as data.
    pub fn data(&self) -> BTreeMap<String, String> {
        let Self { cluster_cidr, service_cidr, cluster_dns, cluster_domain } = self;
        let table = [
            ("cluster-cidr", cluster_cidr.to_string()),
            ("service-cidr", service_cidr.to_string()),
            ("cluster-dns", cluster_dns.to_string()),
            ("cluster-domain", cluster_domain.clone()),
        ];
        table.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
    }
}

/// The certificates of a node that has joined.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) server_ca_pem: String,
    pub(super) client_ca_pem: String,
    pub(super) client: Identity,
    pub(super) serving: Identity,
}

fn read(path: PathBuf) -> Result<Option<String>, JoinError> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JoinError::File { path, source }),
    }
}

fn write(path: PathBuf, text: &str) -> Result<(), JoinError> {
    files::write(&path, text.as_bytes(), 0o600).map_err(|source| JoinError::File { path, source })
}

impl Kept {
    /// Reads them; `None` where they are not whole.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>, JoinError> {
        let mut texts = Vec::with_capacity(FILES.len());
        for name in FILES {
            match read(folder.join(name))? {
                Some(text) => texts.push(text),
                None => return Ok(None),
            }
        }
        let mut texts = texts.into_iter();
        let mut next = || texts.next().unwrap_or_else(String::new);
        let (server_ca_pem, client_ca_pem) = (next(), next());
        let client = Identity { chain_pem: next(), key_pem: next() };
        let serving = Identity { chain_pem: next(), key_pem: next() };
        Ok(Some(Self { server_ca_pem, client_ca_pem, client, serving }))
    }

    pub(super) fn save(&self, folder: &Path) -> Result<(), JoinError> {
        let texts = [
            &self.server_ca_pem,
            &self.client_ca_pem,
            &self.client.chain_pem,
            &self.client.key_pem,
            &self.serving.chain_pem,
            &self.serving.key_pem,
        ];
        FILES.iter().zip(texts).try_for_each(|(name, text)| write(folder.join(name), text))
    }

    /// Whether they can be used: valid now, of this node, and of the cluster whose CA has this hash, if one is given.
    pub(super) fn serves(&self, node: &str, ca_fingerprint: Option<&str>, now: Timestamp) -> bool {
        let is_ours = first(&self.client).is_some_and(|certificate| certificate.common_name == format!("system:node:{node}"));
        let of_cluster = ca_fingerprint.is_none_or(|wanted| tls::fingerprint(&self.server_ca_pem).as_deref() == Some(wanted));
        is_ours && of_cluster && is_valid(&self.client, now) && is_valid(&self.serving, now)
    }
}

fn first(identity: &Identity) -> Option<Certificate> {
    let blocks = pem_blocks(&identity.chain_pem, "CERTIFICATE").ok()?;
    Certificate::parse(blocks.first()?).ok()
}

fn is_valid(identity: &Identity, now: Timestamp) -> bool {
    first(identity).is_some_and(|certificate| certificate.not_before <= now && now < certificate.not_after)
}

/// Whether four fifths of a certificate's life are over.
pub(super) fn is_old(identity: &Identity, now: Timestamp) -> bool {
    first(identity).is_none_or(|certificate| {
        let from = certificate.not_before;
        let (life, age) = (certificate.not_after.duration_since(from).as_secs(), now.duration_since(from).as_secs());
        age.saturating_mul(5) >= life.saturating_mul(4)
    })
}

/// The cluster's settings, if they are kept.
pub(super) fn load_cluster(folder: &Path) -> Result<Option<ClusterFacts>, JoinError> {
    let data = read(folder.join(CLUSTER_FILE))?.and_then(|text| serde_json::from_str(&text).ok());
    Ok(data.and_then(|data| ClusterFacts::parse(&data).ok()))
}

pub(super) fn save_cluster(folder: &Path, cluster: &ClusterFacts) -> Result<(), JoinError> {
    write(folder.join(CLUSTER_FILE), &serde_json::json!(cluster.data()).to_string())
}

/// The URLs of the servers that were known last.
pub(super) fn load_servers(folder: &Path) -> Result<Vec<String>, JoinError> {
    let list = read(folder.join(SERVERS_FILE))?.and_then(|text| serde_json::from_str(&text).ok());
    Ok(list.unwrap_or_else(Vec::new))
}

pub(super) fn save_servers(folder: &Path, urls: &[String]) -> Result<(), JoinError> {
    write(folder.join(SERVERS_FILE), &serde_json::json!(urls).to_string())
}

/// The secret by which this machine shows that it is the one that has the node's name; made once, in `DATA/agent`.
///
/// # Errors
/// When it cannot be read or written.
pub fn node_password(data_dir: &Path) -> Result<String, JoinError> {
    let path = data_dir.join(PASSWORD_FILE);
    if let Some(kept) = read(path.clone())?.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) {
        return Ok(kept);
    }
    let mut bytes = [0_u8; PASSWORD_BYTES];
    random::fill(&mut bytes);
    let password = hex(&bytes);
    write(path, &password)?;
    Ok(password)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pki::Ca;
    use crate::pki::request::SigningRequest;

    #[test]
    fn certificates_are_kept_and_renewed_in_time() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let ca = Ca::generate("test", now).unwrap();
        let signing = SigningRequest::new("system:node:n1", &["system:nodes".to_owned()], &[]).unwrap();
        let day = Duration::from_secs(86_400);
        let chain_pem = ca.sign_csr(&signing.csr_pem, day, &["client auth", "digital signature"], "", now).unwrap();
        let identity = Identity { chain_pem, key_pem: signing.key_pem };
        let table = [(0, true, false), (60_000, true, false), (72_000, true, true), (90_000, false, true)];
        for (age, valid, old) in table {
            let later = now + Duration::from_secs(age);
            assert_eq!((is_valid(&identity, later), is_old(&identity, later)), (valid, old), "after {age} s");
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(Kept::load(directory.path()).unwrap().is_none());
        let ca_pem = ca.certificate_pem().to_owned();
        let kept = Kept { server_ca_pem: ca_pem.clone(), client_ca_pem: ca_pem, client: identity.clone(), serving: identity };
        kept.save(directory.path()).unwrap();
        let again = Kept::load(directory.path()).unwrap().unwrap();
        assert_eq!(again.serving.key_pem, kept.serving.key_pem);
        for (node, hash, serves) in
            [("n1", None, true), ("n1", Some(ca.fingerprint()), true), ("n1", Some("beef"), false), ("n2", None, false)]
        {
            assert_eq!(again.serves(node, hash, now), serves, "{node} {hash:?}");
        }
    }

    #[test]
    fn settings_servers_and_password_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let facts = ClusterFacts {
            cluster_cidr: "10.1.0.0/16".parse().unwrap(),
            service_cidr: "10.2.0.0/16".parse().unwrap(),
            cluster_dns: "10.2.0.10".parse().unwrap(),
            cluster_domain: "c.local".to_owned(),
        };
        assert_eq!(load_cluster(folder.path()).unwrap(), None);
        save_cluster(folder.path(), &facts).unwrap();
        assert_eq!(load_cluster(folder.path()).unwrap(), Some(facts.clone()));
        let mut data = facts.data();
        data.insert("cluster-cidr".to_owned(), "all".to_owned());
        assert_eq!(ClusterFacts::parse(&data), Err("cluster-cidr cannot be \"all\"".to_owned()));
        assert_eq!(load_servers(folder.path()).unwrap(), Vec::<String>::new());
        save_servers(folder.path(), &["https://a:1".to_owned()]).unwrap();
        assert_eq!(load_servers(folder.path()).unwrap(), ["https://a:1"]);
        let password = node_password(folder.path()).unwrap();
        assert_eq!((password.len(), node_password(folder.path()).unwrap()), (32, password));
    }
}
