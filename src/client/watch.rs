//! The watch stream: JSON lines of `metav1.WatchEvent`, each decoded once.

use std::borrow::Cow;

use ::http::Method;
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Client, ClientError, error_of};
use crate::api::ApiError;
use crate::http::{Body, BoxError};

/// Longest line of a watch: an object of the largest size, escaped, and its envelope.
const LINE_BYTES: usize = 16 << 20;

/// One event of a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent<T> {
    /// Added or modified.
    Applied(T),
    /// Deleted, or no longer matched by the selector; the last state.
    Deleted(T),
    /// Everything up to this revision has been sent.
    Bookmark(String),
    /// An object that the type cannot hold: skipped, with the reason.
    Undecodable(String),
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Only the revision of an object.
#[derive(Deserialize)]
struct Bookmark {
    metadata: BookmarkMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BookmarkMeta {
    resource_version: String,
}

/// An open watch.
pub struct WatchStream {
    body: Body,
    buffer: BytesMut,
    /// Bytes of `buffer` that are known to hold no line end.
    scanned: usize,
    path: String,
}

impl WatchStream {
    /// Opens the watch at `path`, which carries its query (`…?watch=1&resourceVersion=7`).
    ///
    /// # Errors
    /// [`ClientError`]; `is_expired` if the revision is gone.
    pub async fn open(client: &Client, path: &str, accept: &str) -> Result<Self, ClientError> {
        let response = client.stream_as(Method::GET, path, accept, "", None).await?;
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok(Self { body, buffer: BytesMut::new(), scanned: 0, path: path.to_owned() });
        }
        let bytes = body.collect().await.map_err(|source| broken(path, source))?.to_bytes();
        Err(error_of(status, &bytes).into())
    }

    /// The next event; `None` when the server closed the watch. Cancel safe.
    ///
    /// # Errors
    /// [`ClientError`]; `is_expired` if the server can no longer serve this watch and a new list is needed.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<WatchEvent<T>>, ClientError> {
        loop {
            if let Some(end) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.scanned + end);
                self.buffer.advance(1);
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return self.decode(&line).map(Some);
            }
            self.scanned = self.buffer.len();
            if self.scanned > LINE_BYTES {
                return Err(broken(&self.path, "a watch event is too long".into()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(source)) => return Err(broken(&self.path, source)),
                None => return Ok(None),
            }
        }
    }

    fn decode<T: DeserializeOwned>(&self, line: &[u8]) -> Result<WatchEvent<T>, ClientError> {
        decode(line).map_err(|error| match error {
            LineError::Status(status) => ClientError::Api(status),
            LineError::Malformed(source) => ClientError::Decode { method: Method::GET, path: self.path.clone(), source },
        })
    }
}

fn broken(path: &str, source: BoxError) -> ClientError {
    ClientError::Transport { method: Method::GET, path: path.to_owned(), source }
}

#[derive(Debug)]
enum LineError {
    Status(ApiError),
    Malformed(serde_json::Error),
}

fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<WatchEvent<T>, LineError> {
    let Line { r#type, object } = serde_json::from_slice(line).map_err(LineError::Malformed)?;
    let object = object.get();
    let event = match &*r#type {
        "ADDED" | "MODIFIED" => serde_json::from_str(object).map(WatchEvent::Applied),
        "DELETED" => serde_json::from_str(object).map(WatchEvent::Deleted),
        "BOOKMARK" => {
            let bookmark: Bookmark = serde_json::from_str(object).map_err(LineError::Malformed)?;
            return Ok(WatchEvent::Bookmark(bookmark.metadata.resource_version));
        }
        "ERROR" => {
            let status: Value = serde_json::from_str(object).map_err(LineError::Malformed)?;
            return Err(LineError::Status(ApiError::from_value(500, &status)));
        }
        other => Ok(WatchEvent::Undecodable(format!("unknown event type {other:?}"))),
    };
    Ok(event.unwrap_or_else(|error| WatchEvent::Undecodable(error.to_string())))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn lines_decode() {
        let map = |line: &str| decode::<ConfigMap>(line.as_bytes()).unwrap();
        let name = |event: WatchEvent<ConfigMap>| match event {
            WatchEvent::Applied(map) | WatchEvent::Deleted(map) => map.metadata.name.unwrap(),
            WatchEvent::Bookmark(revision) => revision,
            WatchEvent::Undecodable(why) => why,
        };
        assert_eq!(name(map(r#"{"type":"ADDED","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a"}}}"#)), "a");
        assert_eq!(name(map(r#"{"type":"DELETED","object":{"metadata":{"name":"b"}}}"#)), "b");
        assert_eq!(name(map(r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#)), "7");
        assert!(matches!(map(r#"{"type":"ADDED","object":{"metadata":7}}"#), WatchEvent::Undecodable(_)));
        let gone = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        assert!(matches!(decode::<ConfigMap>(gone), Err(LineError::Status(status)) if status.is_expired()));
        assert!(matches!(decode::<ConfigMap>(b"{"), Err(LineError::Malformed(_))));
    }
}
