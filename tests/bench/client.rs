//! A plain HTTP/1.1 client over TLS with the admin's certificate: many connections, one request at a time on each.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone)]
pub struct Api {
    address: String,
    tls: TlsConnector,
}

/// One connection.
pub struct Connection(SendRequest<Full<Bytes>>);

impl Api {
    pub fn from_kubeconfig(path: &Path) -> Result<Self, BoxError> {
        let config: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let decode = |value: &serde_yaml::Value| -> Result<Vec<u8>, BoxError> {
            use base64::Engine as _;
            Ok(base64::engine::general_purpose::STANDARD.decode(value.as_str().ok_or("no text")?)?)
        };
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&decode(&cluster["certificate-authority-data"])?) {
            roots.add(certificate?)?;
        }
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(&decode(&user["client-certificate-data"])?).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&decode(&user["client-key-data"])?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = tls.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
        let server = cluster["server"].as_str().ok_or("no server")?;
        Ok(Self { address: server.trim_start_matches("https://").to_owned(), tls: TlsConnector::from(Arc::new(tls)) })
    }

    pub async fn connect(&self) -> Result<Connection, BoxError> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let host = self.address.rsplit_once(':').ok_or("no port")?.0.to_owned();
        let stream = self.tls.connect(ServerName::try_from(host)?, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Connection(sender))
    }

    pub async fn get_once(&self, path: &str) -> Result<(u16, String), BoxError> {
        let (status, body) = self.connect().await?.send(Method::GET, path, Bytes::new()).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

impl Connection {
    pub async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<(u16, Bytes), BoxError> {
        let request =
            Request::builder().method(method).uri(path).header("Host", "bench").header("Content-Type", "application/json");
        self.0.ready().await?;
        let response = self.0.send_request(request.body(Full::new(body))?).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}
