//! Certificates and tokens of the cluster, kept under `DATA_DIR/pki` (mode 0600).
//!
//! On disk are only the roots: the CAs that sign server, client and front-proxy certificates, and the key that signs service
//! account tokens. Certificates below them are made at every start and renewed in the running process, so none goes stale on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::rt::files;

mod ca;
mod certificate;
pub mod jwt;
pub mod request;

pub use ca::{Ca, Leaf, hex};
pub use certificate::Certificate;

/// How long the certificates of our own components are valid.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// When they are made anew: well before the end, while the process runs.
pub const LEAF_RENEWAL: Duration = Duration::from_secs(240 * 86_400);

/// Why a certificate or token could not be read, made or verified.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not what it should be; restore it, or remove the folder to make a new cluster's")]
    Content {
        path: PathBuf,
        #[source]
        source: Box<PkiError>,
    },
    #[error("no {0} block in the PEM text")]
    Pem(&'static str),
    #[error("the certificate does not parse: {0}")]
    Certificate(String),
    #[error("the key cannot be used")]
    Key(#[source] rcgen::Error),
    #[error("the key is not the certificate's")]
    KeyMismatch,
    #[error("the certificate cannot be signed")]
    Sign(#[source] rcgen::Error),
    #[error("the certificate request is not valid")]
    Request(#[source] rcgen::Error),
    #[error("the certificate request asks to be a certificate authority")]
    RequestsCa,
    #[error("unknown key usage {0:?}")]
    Usage(String),
    #[error("{name:?} is not fit for a certificate")]
    Name {
        name: String,
        #[source]
        source: rcgen::Error,
    },
}

/// A certificate chain (leaf first) and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub chain_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// The roots of trust of the cluster.
#[derive(Debug)]
pub struct Pki {
    /// Signs the certificates of API servers and kubelets; clients trust it.
    pub server_ca: Arc<Ca>,
    /// Signs the certificates of users and components; servers trust it.
    pub client_ca: Arc<Ca>,
    /// Signs the certificate by which an extension API server knows us.
    pub front_proxy_ca: Arc<Ca>,
    /// Signs service account tokens.
    pub token_key: Arc<jwt::SigningKey>,
}

const FILES: [&str; 7] = [
    "server-ca.crt",
    "server-ca.key",
    "client-ca.crt",
    "client-ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "service-account.key",
];

impl Pki {
    /// Reads the folder, or makes it if it is not there. Blocks on the disk.
    ///
    /// # Errors
    /// When a file is missing or damaged: it says which. Nothing is overwritten.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, PkiError> {
        if !folder.exists() {
            let made = Self::generate(now)?;
            made.save(folder)?;
            return Ok(made);
        }
        let mut texts = Vec::with_capacity(FILES.len());
        for name in FILES {
            let path = folder.join(name);
            texts.push(std::fs::read_to_string(&path).map_err(|source| PkiError::File { path, source })?);
        }
        let ca = |at: usize| {
            let whole = Ca::load(&texts[at], &texts[at + 1]);
            whole.map(Arc::new).map_err(|source| PkiError::Content { path: folder.join(FILES[at]), source: Box::new(source) })
        };
        let token_key = jwt::SigningKey::from_pem(&texts[6]);
        let token_key =
            token_key.map_err(|source| PkiError::Content { path: folder.join(FILES[6]), source: Box::new(source) })?;
        Ok(Self { server_ca: ca(0)?, client_ca: ca(2)?, front_proxy_ca: ca(4)?, token_key: Arc::new(token_key) })
    }

    /// New roots, in memory only.
    ///
    /// # Errors
    /// Only when a key cannot be made.
    pub fn generate(now: Timestamp) -> Result<Self, PkiError> {
        let ca = |name: &str| Ca::generate(&format!("orch-{name}@{}", now.as_second()), now).map(Arc::new);
        Ok(Self {
            server_ca: ca("server-ca")?,
            client_ca: ca("client-ca")?,
            front_proxy_ca: ca("front-proxy-ca")?,
            token_key: Arc::new(jwt::SigningKey::generate()?),
        })
    }

    fn save(&self, folder: &Path) -> Result<(), PkiError> {
        let texts = [
            self.server_ca.certificate_pem(),
            self.server_ca.key_pem(),
            self.client_ca.certificate_pem(),
            self.client_ca.key_pem(),
            self.front_proxy_ca.certificate_pem(),
            self.front_proxy_ca.key_pem(),
            self.token_key.pem(),
        ];
        let all: Vec<(&str, &[u8])> = FILES.iter().zip(texts).map(|(name, text)| (*name, text.as_bytes())).collect();
        files::write_folder(folder, &all).map_err(|source| PkiError::File { path: folder.to_owned(), source })
    }

    /// A certificate for a server that answers to `sans`.
    ///
    /// # Errors
    /// When a name is not fit for a certificate.
    pub fn serving(&self, common_name: &str, sans: &[String], now: Timestamp) -> Result<Identity, PkiError> {
        let leaf = Leaf { common_name: common_name.to_owned(), sans: sans.to_vec(), lifetime: LEAF_LIFETIME, ..Leaf::default() };
        self.server_ca.issue(&leaf, now)
    }

    /// A certificate for the user `common_name` in one group (`system:masters`, `system:nodes`), or none if it is "".
    ///
    /// # Errors
    /// When a name is not fit for a certificate.
    pub fn client(&self, common_name: &str, organization: &str, now: Timestamp) -> Result<Identity, PkiError> {
        let organizations = if organization.is_empty() { Vec::new() } else { vec![organization.to_owned()] };
        let leaf = Leaf { common_name: common_name.to_owned(), organizations, lifetime: LEAF_LIFETIME, ..Leaf::default() };
        self.client_ca.issue(&leaf, now)
    }
}

/// The names that an API server's certificate must have, besides those of the machine.
pub fn api_server_sans(cluster_domain: &str, extra: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut sans: Vec<String> =
        ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).into();
    sans.push(format!("kubernetes.default.svc.{cluster_domain}"));
    sans.extend(extra);
    let mut seen = std::collections::HashSet::new();
    sans.retain(|san| !san.is_empty() && seen.insert(san.clone()));
    sans
}

/// The DER contents of all blocks with this label; at least one.
///
/// # Errors
/// [`PkiError::Pem`] when there is none, or one is not base64.
pub fn pem_blocks(text: &str, label: &'static str) -> Result<Vec<Vec<u8>>, PkiError> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(&begin) {
        let (body, tail) = after.split_once(&end).ok_or(PkiError::Pem(label))?;
        let packed: String = body.split_whitespace().collect();
        blocks.push(STANDARD.decode(packed).map_err(|_| PkiError::Pem(label))?);
        rest = tail;
    }
    if blocks.is_empty() { Err(PkiError::Pem(label)) } else { Ok(blocks) }
}

/// A block of PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    const LINE: usize = 64;
    let packed = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = packed.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(LINE.min(rest.len()));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pki");
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        let made = Pki::open(&folder, now).unwrap();
        let read = Pki::open(&folder, now).unwrap();
        assert_eq!(made.server_ca.fingerprint(), read.server_ca.fingerprint());
        assert_eq!(made.token_key.kid(), read.token_key.kid());
        for name in FILES {
            assert_eq!(std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        std::fs::write(folder.join("client-ca.key"), "x").unwrap();
        let error = Pki::open(&folder, now).unwrap_err();
        assert!(error.to_string().contains("client-ca.crt"), "{error}");
    }

    #[test]
    fn server_names_are_unique() {
        let sans = api_server_sans("c.local", ["10.43.0.1".to_owned(), "localhost".to_owned()]);
        assert_eq!(sans.iter().filter(|san| *san == "localhost").count(), 1);
        assert!(sans.contains(&"kubernetes.default.svc.c.local".to_owned()));
    }
}
