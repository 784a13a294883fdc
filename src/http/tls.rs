//! TLS settings of both sides over rustls and ring: ALPN, client certificates, certificates that change while serving.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine;
use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring as provider, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::BoxError;

/// Where Linux distributions keep the certificates they trust.
const SYSTEM_ROOTS: [&str; 3] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the PEM text of the {what} does not parse")]
    Pem {
        what: &'static str,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("the {what} cannot be used")]
    Use {
        what: &'static str,
        #[source]
        source: BoxError,
    },
    #[error("this machine has no list of trusted certificates; name a certificate authority")]
    NoSystemRoots,
}

fn unusable(what: &'static str) -> impl FnOnce(Error) -> TlsError {
    move |source| TlsError::Use { what, source: source.into() }
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem { what, source })?;
    if all.is_empty() { Err(TlsError::Pem { what, source: rustls::pki_types::pem::Error::NoItemsFound }) } else { Ok(all) }
}

fn roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem, "certificate authority")? {
        store.add(certificate).map_err(unusable("certificate authority"))?;
    }
    Ok(store)
}

fn certified_key(chain_pem: &str, key_pem: &str) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(chain_pem, "certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|source| TlsError::Pem { what: "key", source })?;
    CertifiedKey::from_der(chain, key, &crypto()).map_err(unusable("certificate"))
}

/// The server's side. Its certificate can be replaced while it serves.
#[derive(Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ServerTls {
    /// A server with this certificate chain and key (PEM) that asks clients for certificates of `client_ca_pem`, if one is
    /// given. A client without one, or with a wrong one, is let in; [`verify_peer`](Self::verify_peer) tells which it was.
    ///
    /// # Errors
    /// [`TlsError`] when a text does not parse or the key is not the certificate's.
    pub fn new(chain_pem: &str, key_pem: &str, client_ca_pem: Option<&str>) -> Result<Self, TlsError> {
        let current = Arc::new(Current(ArcSwap::from_pointee(certified_key(chain_pem, key_pem)?)));
        let builder = ServerConfig::builder_with_provider(crypto());
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable("TLS version"))?;
        let clients = match client_ca_pem {
            None => None,
            Some(pem) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(pem)?), crypto());
                let verifier = verifier.allow_unauthenticated().build();
                Some(verifier.map_err(|error| TlsError::Use { what: "client certificate authority", source: error.into() })?)
            }
        };
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(inner) => builder.with_client_cert_verifier(Arc::new(AskForCertificate(Arc::clone(inner)))),
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), current, clients })
    }

    /// Replaces the certificate; connections that stand go on with the old one.
    ///
    /// # Errors
    /// As [`new`](Self::new); the old one stays then.
    pub fn replace(&self, chain_pem: &str, key_pem: &str) -> Result<(), TlsError> {
        self.current.0.store(Arc::new(certified_key(chain_pem, key_pem)?));
        Ok(())
    }

    /// Whether a chain (DER, leaf first) ends at the client CA, is valid now, and is for client authentication.
    pub fn verify_peer(&self, chain: &[CertificateDer<'_>]) -> bool {
        let (Some(verifier), Some((leaf, rest))) = (&self.clients, chain.split_first()) else { return false };
        verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// Those of the connection or of TLS.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> std::io::Result<tokio_rustls::server::TlsStream<S>> {
        tokio_rustls::TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await
    }
}

/// Asks for a certificate, and makes sure that the client has its key. Whom it names is found out after the handshake, so that
/// a client with a wrong certificate gets 401 in HTTP and not an alert of TLS, as from upstream's apiserver.
#[derive(Debug)]
struct AskForCertificate(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Which servers a client believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those whose chain ends at a certificate of this PEM text.
    Roots(String),
    /// Those that the machine trusts.
    System,
    /// Those whose chain shows a CA with this SHA-256 of its public key (hexadecimal): what a join token carries.
    Pinned(String),
    /// All. Only where a user asked for it.
    Insecure,
}

/// The client's side.
#[derive(Debug, Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    /// A client that believes `trust` and shows a certificate chain with its key (PEM), if one is given.
    ///
    /// # Errors
    /// [`TlsError`] when a text does not parse.
    pub fn new(trust: &Trust, identity: Option<(&str, &str)>) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(crypto());
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable("TLS version"))?;
        let builder = match trust {
            Trust::Roots(pem) => builder.with_root_certificates(roots(pem)?),
            Trust::System => builder.with_root_certificates(system_roots()?),
            Trust::Pinned(fingerprint) => {
                builder.dangerous().with_custom_certificate_verifier(PinnedCa::verifier(Some(fingerprint.clone())))
            }
            Trust::Insecure => builder.dangerous().with_custom_certificate_verifier(PinnedCa::verifier(None)),
        };
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key =
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|source| TlsError::Pem { what: "key", source })?;
                let chain = certificates(chain, "certificate")?;
                builder.with_client_auth_cert(chain, key).map_err(unusable("client certificate"))?
            }
        };
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands with `host` over a stream; `protocols` are offered by ALPN.
    ///
    /// # Errors
    /// Those of the connection or of TLS.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        protocols: &[&[u8]],
        stream: S,
    ) -> Result<tokio_rustls::client::TlsStream<S>, BoxError> {
        let mut config = (*self.0).clone();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
        Ok(tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
    }
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let text = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read_to_string(path).ok()).ok_or(TlsError::NoSystemRoots)?;
    let mut store = RootCertStore::empty();
    // Some that a distribution ships do not parse; the others still count.
    store.add_parsable_certificates(certificates(&text, "certificate authority")?);
    Ok(store)
}

/// Believes a chain that shows the pinned CA and is valid under it; with no pin, any server.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: Option<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedCa {
    fn verifier(fingerprint: Option<String>) -> Arc<dyn ServerCertVerifier> {
        Arc::new(Self { fingerprint, algorithms: crypto().signature_verification_algorithms })
    }
}

/// SHA-256 of a certificate's public key, in hexadecimal.
fn public_key_hash(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let hash = digest::digest(&digest::SHA256, parsed.public_key().raw);
    Some(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// SHA-256 of the public key of the first certificate of a PEM text, in hexadecimal: what a join token carries of a CA.
pub fn fingerprint(pem: &str) -> Option<String> {
    public_key_hash(certificates(pem, "certificate authority").ok()?.first()?)
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(fingerprint) = &self.fingerprint else { return Ok(ServerCertVerified::assertion()) };
        let authority = rest.iter().find(|one| public_key_hash(one).is_some_and(|hash| hash == *fingerprint));
        let authority =
            authority.ok_or_else(|| Error::General("the server shows no certificate authority of the token".into()))?;
        let mut store = RootCertStore::empty();
        store.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), crypto()).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, rest, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Asks a server for the CA that a join token pins, and returns its certificate as PEM.
///
/// # Errors
/// When the server can't be reached, or shows another CA.
pub async fn discover_ca(host: &str, port: u16, fingerprint: &str) -> Result<String, BoxError> {
    let tls = ClientTls::new(&Trust::Pinned(fingerprint.to_owned()), None)?;
    let stream = super::connector::dial(host, port).await?;
    let stream = tls.connect(host, &[b"http/1.1"], stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or(&[]);
    let authority = chain.iter().find(|one| public_key_hash(one).is_some_and(|hash| hash == fingerprint));
    let authority = authority.ok_or("the server shows no certificate authority of the token")?;
    let text = base64::engine::general_purpose::STANDARD.encode(authority);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Ok(format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")))
}
