//! Watches: a stream of events. What is waiting goes out in one write.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::super::RequestContext;
use super::super::negotiate::{Accepted, Form, Media};
use super::options;
use super::render::{self, Renderer};
use super::table::{self, Include};
use crate::api::{ApiError, proto};
use crate::http::{BoxError, HttpResponse};
use crate::registry::{WatchEvent, WatchStream};
use crate::rt::{clock, limits, random};
use crate::store::{Entry, Revision};

/// Largest write that is put together; one event may be larger.
const WRITE_BYTES: usize = 16 << 10;

/// Starts the watch that the request asks for.
///
/// # Errors
/// As [`crate::registry::Registry::watch`].
pub fn serve(renderer: Renderer, context: &RequestContext) -> Result<HttpResponse, ApiError> {
    let options = options::watch(context)?;
    let include = Include::parse(context.query("includeObject").unwrap_or(""))?;
    let seconds = options::number(context, "timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok());
    let lifetime = match seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => random::jitter(limits::WATCH_TIMEOUT_MIN, 1.0),
    };
    let allows_bookmarks = options.allow_bookmarks;
    let watch = renderer.registry.watch(&*renderer.kind, &context.info.namespace, options)?;
    let mut bookmarks = tokio::time::interval_at(clock::instant() + limits::BOOKMARK_INTERVAL, limits::BOOKMARK_INTERVAL);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let media = match renderer.accepted.media {
        Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => Media::Json.as_str(),
    };
    let feed = Feed {
        watch,
        framer: Framer { renderer: Arc::new(renderer), include, has_sent_columns: false },
        bookmarks: allows_bookmarks.then_some(bookmarks),
        deadline: clock::instant() + lifetime,
        waiting: Vec::new(),
        is_over: false,
    };
    let body = StreamBody::new(stream::unfold(feed, |mut feed| async {
        let bytes = feed.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(bytes)), feed))
    }));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// One watch on its way to one client.
struct Feed {
    watch: WatchStream,
    framer: Framer,
    bookmarks: Option<Interval>,
    deadline: Instant,
    /// Events that did not fit into the last write, in reverse.
    waiting: Vec<WatchEvent>,
    is_over: bool,
}

impl Feed {
    /// The next write; `None` at the end of the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        if self.waiting.is_empty() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.deadline) => return None,
                batch = self.watch.next_batch() => match batch? {
                    Ok(events) => {
                        self.waiting = events;
                        self.waiting.reverse();
                    }
                    Err(error) => {
                        self.is_over = true;
                        return Some(self.framer.error(&error));
                    }
                },
                () = tick(self.bookmarks.as_mut()) => {
                    let revision = self.watch.progress();
                    self.waiting = vec![WatchEvent::Bookmark { revision, ends_initial: false }];
                }
            }
        }
        let mut out = Vec::new();
        while let Some(event) = self.waiting.pop() {
            if let Err(error) = self.framer.write(&mut out, &event) {
                self.is_over = true;
                out.extend_from_slice(&self.framer.error(&error));
                break;
            }
            if out.len() >= WRITE_BYTES {
                break;
            }
        }
        Some(out.into())
    }
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Events as lines of JSON.
struct Framer {
    renderer: Arc<Renderer>,
    include: Include,
    has_sent_columns: bool,
}

impl Framer {
    fn write(&mut self, out: &mut Vec<u8>, event: &WatchEvent) -> Result<(), ApiError> {
        let (word, entry) = match event {
            WatchEvent::Added(entry) => ("ADDED", entry),
            WatchEvent::Modified(entry) => ("MODIFIED", entry),
            WatchEvent::Deleted(entry) => ("DELETED", entry),
            WatchEvent::Bookmark { revision, ends_initial } => {
                let object = self.bookmark(*revision, *ends_initial);
                return self.write_value(out, "BOOKMARK", &object);
            }
        };
        let is_verbatim = self.renderer.accepted == Accepted::JSON && self.renderer.kind.is_stored_form();
        if is_verbatim {
            write_frame(out, word, &entry.bytes);
            return Ok(());
        }
        let value = self.transform(entry)?;
        self.write_value(out, word, &value)
    }

    fn write_value(&self, out: &mut Vec<u8>, word: &str, value: &Value) -> Result<(), ApiError> {
        if self.renderer.accepted.media != Media::Protobuf {
            write_frame(out, word, value.to_string().as_bytes());
            return Ok(());
        }
        let (object, _) = render::encode(value, Media::Protobuf, false)?;
        out.extend_from_slice(&proto::watch_frame(word, &object));
        Ok(())
    }

    fn error(&self, error: &ApiError) -> Bytes {
        let mut out = Vec::new();
        let value = error.to_value();
        if self.write_value(&mut out, "ERROR", &value).is_err() {
            write_frame(&mut out, "ERROR", value.to_string().as_bytes());
        }
        out.into()
    }

    fn transform(&mut self, entry: &Entry) -> Result<Value, ApiError> {
        let renderer = &self.renderer;
        let object = renderer.registry.decode(&*renderer.kind, entry)?;
        Ok(match renderer.accepted.form {
            Form::Whole => Value::Object(object.0),
            Form::Partial(version) => table::partial(version, &object),
            Form::Table(version) => {
                let metadata = json!({"resourceVersion": object.resource_version()});
                let row = table::row(&*renderer.kind, version, object, self.include, renderer.registry.clock().now());
                let with_columns = !std::mem::replace(&mut self.has_sent_columns, true);
                table::table(&*renderer.kind, version, metadata, vec![row], with_columns)
            }
        })
    }

    /// An object of the kind that has a revision only.
    fn bookmark(&mut self, revision: Revision, ends_initial: bool) -> Value {
        let names = self.renderer.kind.names();
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        match self.renderer.accepted.form {
            Form::Whole => json!({"kind": names.kind, "apiVersion": names.api_version(), "metadata": metadata}),
            Form::Partial(version) => json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": metadata}),
            Form::Table(version) => {
                let object = json!({"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": metadata});
                let with_columns = !std::mem::replace(&mut self.has_sent_columns, true);
                let blank: Vec<Value> = self.renderer.kind.columns().iter().map(|_| Value::from("")).collect();
                let row = json!({"cells": blank, "object": object});
                table::table(
                    &*self.renderer.kind,
                    version,
                    json!({"resourceVersion": revision.to_string()}),
                    vec![row],
                    with_columns,
                )
            }
        }
    }
}

fn write_frame(out: &mut Vec<u8>, word: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(word.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}
