//! Answers: one object, a list, in the form and the encoding that was negotiated. Stored bytes are sent as they are where the
//! client takes JSON.

use std::io::Write;
use std::sync::Arc;

use ::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Map, Value, json};

use super::super::RequestContext;
use super::super::negotiate::{self, Accepted, Form, Media};
use super::table::{self, Include};
use crate::api::{ApiError, Kind, Object, proto};
use crate::http::{Body, BoxError, HttpResponse, full};
use crate::registry::{Listing, Registry};
use crate::store::Entry;

/// Size of the pieces of a long list.
const CHUNK_BYTES: usize = 128 << 10;

/// How one request wants its answer.
pub struct Renderer {
    pub registry: Arc<Registry>,
    pub kind: Arc<dyn Kind>,
    pub accepted: Accepted,
    include: Include,
    is_pretty: bool,
    takes_gzip: bool,
}

impl Renderer {
    /// Reads headers and query.
    ///
    /// # Errors
    /// 406, 400.
    pub fn new(
        registry: &Arc<Registry>,
        kind: Arc<dyn Kind>,
        context: &RequestContext,
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            registry: Arc::clone(registry),
            kind,
            accepted: negotiate::accepted(headers)?,
            include: Include::parse(context.query("includeObject").unwrap_or(""))?,
            is_pretty: is_pretty(context, headers),
            takes_gzip: negotiate::takes_gzip(headers),
        })
    }

    /// Whether stored bytes can go out untouched.
    fn is_verbatim(&self) -> bool {
        self.is_plain() && !self.is_pretty
    }

    fn is_plain(&self) -> bool {
        self.accepted == Accepted::JSON && self.kind.is_stored_form()
    }

    /// One stored object.
    ///
    /// # Errors
    /// 500 when the object does not decode.
    pub fn entry(&self, entry: &Entry, status: StatusCode, warnings: &[String]) -> Result<HttpResponse, ApiError> {
        if self.is_verbatim() {
            return Ok(answer(status, Media::Json.as_str(), entry.bytes.clone(), warnings));
        }
        self.object(self.registry.decode(&*self.kind, entry)?, status, warnings)
    }

    /// One object, in the form that was asked for.
    ///
    /// # Errors
    /// 500 when it does not encode.
    pub fn object(&self, object: Object, status: StatusCode, warnings: &[String]) -> Result<HttpResponse, ApiError> {
        let value = match self.accepted.form {
            Form::Whole => Value::Object(object.0),
            Form::Partial(version) => table::partial(version, &object),
            Form::Table(version) => {
                let metadata = json!({"resourceVersion": object.resource_version()});
                let row = table::row(&*self.kind, version, object, self.include, self.registry.clock().now());
                table::table(&*self.kind, version, metadata, vec![row], true)
            }
        };
        self.value(&value, status, warnings)
    }

    /// An object that is not stored: a Status, a Scale.
    ///
    /// # Errors
    /// 500 when it does not encode.
    pub fn value(&self, value: &Value, status: StatusCode, warnings: &[String]) -> Result<HttpResponse, ApiError> {
        let (bytes, media) = encode(value, self.accepted.media, self.is_pretty)?;
        Ok(answer(status, media.as_str(), bytes, warnings))
    }

    /// A list. A long one is sent in pieces, as the client reads them.
    ///
    /// # Errors
    /// 500 when an object does not decode.
    pub fn list(&self, listing: Listing) -> Result<HttpResponse, ApiError> {
        let metadata = list_metadata(&listing);
        match self.accepted.form {
            Form::Whole if self.is_verbatim() => Ok(self.verbatim_list(&metadata, listing)),
            _ => {
                let objects = listing.entries.iter().map(|entry| self.registry.decode(&*self.kind, entry));
                self.objects(metadata, objects)
            }
        }
    }

    /// A list of objects, in the form that was asked for.
    ///
    /// # Errors
    /// 500 when one does not decode.
    pub fn objects(
        &self,
        metadata: Value,
        objects: impl Iterator<Item = Result<Object, ApiError>>,
    ) -> Result<HttpResponse, ApiError> {
        match self.accepted.form {
            Form::Whole => {
                let items: Result<Vec<Value>, ApiError> = objects.map(|object| Ok(Value::Object(object?.0))).collect();
                let items = items?;
                let names = self.kind.names();
                let list = json!({
                    "kind": format!("{}List", names.kind), "apiVersion": names.api_version(), "metadata": metadata, "items": items,
                });
                self.value(&list, StatusCode::OK, &[])
            }
            Form::Partial(version) => {
                let items: Result<Vec<Value>, ApiError> = objects.map(|object| Ok(table::partial(version, &object?))).collect();
                let items = items?;
                let list =
                    json!({"kind": "PartialObjectMetadataList", "apiVersion": version, "metadata": metadata, "items": items});
                self.value(&list, StatusCode::OK, &[])
            }
            Form::Table(version) => {
                let now = self.registry.clock().now();
                let rows: Result<Vec<Value>, ApiError> =
                    objects.map(|object| Ok(table::row(&*self.kind, version, object?, self.include, now))).collect();
                let rows = rows?;
                let whole = table::table(&*self.kind, version, metadata, rows, true);
                self.value(&whole, StatusCode::OK, &[])
            }
        }
    }

    fn verbatim_list(&self, metadata: &Value, listing: Listing) -> HttpResponse {
        let names = self.kind.names();
        let mut head = Vec::with_capacity(CHUNK_BYTES.min(1024));
        head.extend_from_slice(
            format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                names.kind,
                names.api_version()
            )
            .as_bytes(),
        );
        let total: usize = listing.entries.iter().map(|entry| entry.bytes.len() + 1).sum();
        let mut pieces = Pieces { entries: listing.entries, next: 0, buffer: head, is_done: false };
        if total < CHUNK_BYTES {
            let bytes = pieces.next().unwrap_or_default();
            return answer(StatusCode::OK, Media::Json.as_str(), bytes, &[]);
        }
        let is_gzip = self.takes_gzip;
        let body = if is_gzip { stream_of(Gzip::new(pieces)) } else { stream_of(pieces.map(Ok)) };
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(Media::Json.as_str()));
        if is_gzip {
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        response
    }
}

fn stream_of(pieces: impl Iterator<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    StreamBody::new(stream::iter(pieces).map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// The bytes of a list, piece by piece.
struct Pieces {
    entries: Vec<Arc<Entry>>,
    next: usize,
    buffer: Vec<u8>,
    is_done: bool,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.is_done {
            return None;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(entry) = self.entries.get(self.next) {
            if buffer.len() + entry.bytes.len() > CHUNK_BYTES && !buffer.is_empty() {
                self.buffer = Vec::with_capacity(CHUNK_BYTES);
                return Some(buffer.into());
            }
            if self.next > 0 {
                buffer.push(b',');
            }
            buffer.extend_from_slice(&entry.bytes);
            self.next += 1;
        }
        buffer.extend_from_slice(b"]}");
        self.is_done = true;
        Some(buffer.into())
    }
}

/// Pieces, compressed as they are asked for.
struct Gzip<I> {
    pieces: I,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I> Gzip<I> {
    fn new(pieces: I) -> Self {
        Self { pieces, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Gzip<I> {
    type Item = Result<Bytes, BoxError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let encoder = self.encoder.as_mut()?;
            match self.pieces.next() {
                Some(piece) => {
                    if let Err(error) = encoder.write_all(&piece) {
                        self.encoder = None;
                        return Some(Err(error.into()));
                    }
                    let ready = std::mem::take(encoder.get_mut());
                    if !ready.is_empty() {
                        return Some(Ok(ready.into()));
                    }
                }
                None => return self.encoder.take().map(|last| last.finish().map(Bytes::from).map_err(Into::into)),
            }
        }
    }
}

/// `metadata` of a list.
fn list_metadata(listing: &Listing) -> Value {
    let mut metadata = json!({"resourceVersion": listing.revision.to_string()});
    if !listing.continue_token.is_empty() {
        metadata["continue"] = json!(listing.continue_token);
    }
    if let Some(remaining) = listing.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    metadata
}

/// Encodes a value; JSON where the asked encoding cannot hold it.
pub fn encode(value: &Value, media: Media, is_pretty: bool) -> Result<(Bytes, Media), ApiError> {
    match media {
        Media::Protobuf if value.is_object() => match proto::encode(value.as_object().unwrap_or(&Map::new())) {
            Ok(bytes) => Ok((bytes.into(), Media::Protobuf)),
            Err(_) => Ok((serde_json::to_vec(value).map_err(ApiError::internal)?.into(), Media::Json)),
        },
        Media::Yaml => Ok((serde_yaml::to_string(value).map_err(ApiError::internal)?.into(), Media::Yaml)),
        _ if is_pretty => {
            let mut bytes = serde_json::to_vec_pretty(value).map_err(ApiError::internal)?;
            bytes.push(b'\n');
            Ok((bytes.into(), Media::Json))
        }
        _ => Ok((serde_json::to_vec(value).map_err(ApiError::internal)?.into(), Media::Json)),
    }
}

/// A response of bytes that are at hand.
pub fn answer(status: StatusCode, media: &'static str, bytes: Bytes, warnings: &[String]) -> HttpResponse {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    add_warnings(headers, warnings);
    response
}

/// `Warning: 299 - "text"` for each text.
pub fn add_warnings(headers: &mut HeaderMap, warnings: &[String]) {
    for text in warnings {
        let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{escaped}\"")) {
            headers.append(header::WARNING, value);
        }
    }
}

/// `?pretty`; browsers and curl get it unasked, as upstream has it.
fn is_pretty(context: &RequestContext, headers: &HeaderMap) -> bool {
    if context.query("pretty").is_some() {
        return context.flag("pretty");
    }
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|prefix| agent.starts_with(prefix))
}
