//! One request on a connection of its own that is closed after it: what health probes do. Nothing is kept, nothing is spawned; the
//! whole exchange is the caller's future, and dropping it closes the connection.

use ::http::{HeaderMap, Uri, Version, header, response};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connector::{Endpoint, dial};
use super::listener::GroupExecutor;
use super::tls::ClientTls;
use super::{BoxError, HttpRequest};
use crate::rt::TaskGroup;

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// HTTP/2 without negotiation: gRPC.
    Http2,
}

/// An answer, read to its end or to the limit.
#[derive(Debug)]
pub struct Answer {
    pub head: response::Parts,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// Makes exchanges.
pub struct Once {
    tls: ClientTls,
    tasks: TaskGroup,
}

impl Once {
    /// Exchanges whose HTTP/2 streams are tasks of `tasks`.
    pub fn new(tls: ClientTls, tasks: TaskGroup) -> Self {
        Self { tls, tasks }
    }

    /// Sends a request whose URI is a path and query; reads at most `limit` bytes of the answer. The caller bounds the time.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn exchange(
        &self,
        to: &Endpoint,
        protocol: Protocol,
        request: HttpRequest,
        limit: usize,
    ) -> Result<Answer, BoxError> {
        let stream = dial(&to.host, to.port).await?;
        match protocol {
            Protocol::Http1 if to.tls => {
                let stream = self.tls.connect(&to.host, &[b"http/1.1"], stream).await?;
                http1_over(stream, to, request, limit).await
            }
            Protocol::Http1 => http1_over(stream, to, request, limit).await,
            Protocol::Http2 => http2_over(stream, to, request, limit, GroupExecutor(self.tasks.clone())).await,
        }
    }
}

async fn http1_over<S>(stream: S, to: &Endpoint, mut request: HttpRequest, limit: usize) -> Result<Answer, BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    *request.version_mut() = Version::HTTP_11;
    if !request.headers().contains_key(header::HOST) {
        request.headers_mut().insert(header::HOST, to.authority().parse()?);
    }
    request.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    let mut exchange = std::pin::pin!(async move { read(sender.send_request(request).await?, limit).await });
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The connection may end with the last byte of an answer that is not yet taken.
        ended = connection => { ended?; exchange.await }
    }
}

async fn http2_over<S>(
    stream: S,
    to: &Endpoint,
    mut request: HttpRequest,
    limit: usize,
    executor: GroupExecutor,
) -> Result<Answer, BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http2::handshake(executor, TokioIo::new(stream)).await?;
    *request.version_mut() = Version::HTTP_2;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::builder().scheme("http").authority(to.authority()).path_and_query(path).build()?;
    let mut exchange = std::pin::pin!(async move { read(sender.send_request(request).await?, limit).await });
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = connection => { ended?; exchange.await }
    }
}

async fn read(response: ::http::Response<hyper::body::Incoming>, limit: usize) -> Result<Answer, BoxError> {
    let (head, body) = response.into_parts();
    let (mut body, mut bytes, mut trailers) = (std::pin::pin!(body), BytesMut::new(), None);
    while bytes.len() < limit
        && let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
    {
        match frame?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data[..data.len().min(limit - bytes.len())]),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(Answer { head, body: bytes.freeze(), trailers })
}

#[cfg(test)]
mod tests {
    use ::http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::empty;
    use crate::http::tls::Trust;

    #[tokio::test]
    async fn one_request_one_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Endpoint::new(false, "127.0.0.1", listener.local_addr().unwrap().port());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = vec![0; 1024];
            let length = stream.read(&mut seen).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await.unwrap();
            let rest = stream.read(&mut [0; 16]).await.unwrap();
            (String::from_utf8_lossy(&seen[..length]).into_owned(), rest)
        });
        let tls = ClientTls::new(&Trust::Insecure, None).unwrap();
        let request = Request::get("/x").header("host", "web.example").body(empty()).unwrap();
        let once = Once::new(tls, TaskGroup::new());
        let answer = once.exchange(&to, Protocol::Http1, request, 3).await.unwrap();
        assert_eq!((answer.head.status.as_u16(), &answer.body[..]), (200, &b"hel"[..]));
        let (seen, rest) = served.await.unwrap();
        assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("host: web.example\r\n"), "{seen}");
        assert_eq!(rest, 0, "the connection is closed");
    }
}
