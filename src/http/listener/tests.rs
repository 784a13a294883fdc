//! Listener, connector and tunnel against each other, over TLS.

use std::sync::Arc;

use ::http::{Request, Response, StatusCode, header};
use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::http::connector::{Connector, Endpoint};
use crate::http::tls::{ClientTls, Trust};
use crate::http::{Handler, HttpRequest, HttpResponse, full, tunnel};
use crate::pki::Pki;

/// Says who is there; on an upgrade echoes, upper-cased.
struct Echo(TaskGroup);

#[async_trait]
impl Handler for Echo {
    async fn handle(self: Arc<Self>, mut request: HttpRequest) -> HttpResponse {
        if let Some(upgrade) = tunnel::upgrade_of(&mut request).filter(|_| crate::http::is_upgrade(request.headers())) {
            self.0.spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0_u8; 5];
                stream.read_exact(&mut bytes).await.unwrap();
                stream.write_all(&bytes.to_ascii_uppercase()).await.unwrap();
            });
            let response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let response = response.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "echo");
            return response.body(crate::http::empty()).unwrap();
        }
        let peer = request.extensions().get::<PeerCertificates>().map(|peer| (peer.chain.len(), peer.verified));
        let text = format!("{:?} {} {peer:?}", request.version(), request.uri().path());
        Response::new(full(text))
    }
}

struct Fixture {
    tasks: TaskGroup,
    pki: Pki,
    to: Endpoint,
}

async fn start() -> Fixture {
    let now = jiff::Timestamp::now();
    let (tasks, pki) = (TaskGroup::new(), Pki::generate(now).unwrap());
    let serving = pki.serving("server", &["localhost".to_owned(), "127.0.0.1".to_owned()], now).unwrap();
    let tls = ServerTls::new(&serving.chain_pem, &serving.key_pem, Some(pki.client_ca.certificate_pem())).unwrap();
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Some(Arc::new(tls))).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = Arc::new(Echo(tasks.clone()));
    let (group, served) = (tasks.clone(), tasks.clone());
    tasks.spawn(async move { listener.serve(echo, served).await });
    Fixture { tasks: group, pki, to: Endpoint::new(true, "127.0.0.1", port) }
}

impl Fixture {
    fn connector(&self, trust: &Trust, identity: Option<&crate::pki::Identity>) -> Connector {
        let identity = identity.map(|identity| (identity.chain_pem.as_str(), identity.key_pem.as_str()));
        Connector::new(ClientTls::new(trust, identity).unwrap(), self.tasks.clone())
    }

    fn roots(&self) -> Trust {
        Trust::Roots(self.pki.server_ca.certificate_pem().to_owned())
    }
}

async fn text(response: HttpResponse) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

fn get(path: &str) -> HttpRequest {
    Request::builder().uri(path).body(crate::http::empty()).unwrap()
}

#[tokio::test]
async fn requests_share_http2_and_say_who_asks() {
    let fixture = start().await;
    let now = jiff::Timestamp::now();
    let jane = fixture.pki.client("jane", "dev", now).unwrap();
    let stranger = Pki::generate(now).unwrap().client("jane", "dev", now).unwrap();
    for (identity, peer) in [(None, "None"), (Some(&jane), "Some((2, true))"), (Some(&stranger), "Some((2, false))")] {
        let connector = fixture.connector(&fixture.roots(), identity);
        for path in ["/a", "/b"] {
            let response = connector.send(&fixture.to, get(path)).await.unwrap();
            assert_eq!(text(response).await, format!("HTTP/2.0 {path} {peer}"));
        }
    }
    assert!(fixture.tasks.shutdown(std::time::Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_client_believes_only_the_right_server() {
    let fixture = start().await;
    let other = Pki::generate(jiff::Timestamp::now()).unwrap();
    let pin = fixture.pki.server_ca.fingerprint().to_owned();
    let table = [
        (fixture.roots(), true),
        (Trust::Roots(other.server_ca.certificate_pem().to_owned()), false),
        (Trust::Pinned(pin.clone()), true),
        (Trust::Pinned(other.server_ca.fingerprint().to_owned()), false),
        (Trust::Insecure, true),
    ];
    for (trust, works) in table {
        let sent = fixture.connector(&trust, None).send(&fixture.to, get("/")).await;
        assert_eq!(sent.is_ok(), works, "{trust:?}");
    }
    let found = crate::http::tls::discover_ca("127.0.0.1", fixture.to.port, &pin).await.unwrap();
    assert_eq!(crate::pki::pem_blocks(&found, "CERTIFICATE").unwrap()[0], fixture.pki.server_ca.certificate_der());
}

#[tokio::test]
async fn upgrades_pass_raw_bytes() {
    let fixture = start().await;
    let connector = fixture.connector(&fixture.roots(), None);
    let mut request = get("/exec");
    request.headers_mut().insert(header::CONNECTION, "Upgrade".parse().unwrap());
    request.headers_mut().insert(header::UPGRADE, "echo".parse().unwrap());
    let response = connector.send(&fixture.to, request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut bytes = [0_u8; 5];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"HELLO");
}
