//! Objects to stored bytes and back. Reads never pass here unless a kind's form differs from the stored one.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::api::{ApiError, Kind, Object, field::FieldError, field::Path};
use crate::rt::limits;
use crate::store::{Draft, Durability, Entry, Index, Revision};

/// The object of an entry, in the form of `kind`.
///
/// # Errors
/// 500 when the stored bytes are no JSON object, which the store never lets happen.
pub(super) fn decode(kind: &dyn Kind, entry: &Entry) -> Result<Object, ApiError> {
    let mut object: Object = serde_json::from_slice(&entry.bytes)
        .map_err(|error| ApiError::internal(format!("the stored object {} does not decode: {error}", entry.key)))?;
    if !kind.is_stored_form() {
        kind.convert_from_storage(&mut object);
    }
    Ok(object)
}

/// The bytes to store, with a place for the revision, and what is indexed beside them.
///
/// # Errors
/// 422 when the object is larger than the store takes.
pub(super) fn draft(kind: &dyn Kind, object: &Object) -> Result<Draft, ApiError> {
    let index = index(kind, object);
    let stored;
    let object = if kind.is_stored_form() {
        object
    } else {
        let mut converted = object.clone();
        kind.convert_to_storage(&mut converted);
        stored = converted;
        &stored
    };
    let mut body = Vec::with_capacity(1024);
    let revision_at = write_object(&mut body, &object.0).map_err(ApiError::internal)?;
    if body.len() > limits::OBJECT_BYTES {
        let error = FieldError::too_long(Path::default(), limits::OBJECT_BYTES);
        return Err(ApiError::invalid(kind.names().group, kind.names().kind, object.name(), &[error]));
    }
    Ok(Draft { body: body.into(), revision_at: u32::try_from(revision_at).unwrap_or(u32::MAX), index })
}

/// The draft of an object that the system writes: nothing is indexed.
///
/// # Errors
/// 500 when the value is no JSON object.
pub(super) fn plain(value: Value) -> Result<Draft, ApiError> {
    let Value::Object(map) = value else { return Err(ApiError::internal("not an object")) };
    let mut body = Vec::with_capacity(256);
    let revision_at = write_object(&mut body, &map).map_err(ApiError::internal)?;
    let labels = Object(map).labels().map(|(key, value)| (Arc::from(key), Arc::from(value))).collect();
    let index = Index { labels, fields: Vec::new() };
    Ok(Draft { body: body.into(), revision_at: u32::try_from(revision_at).unwrap_or(u32::MAX), index })
}

/// Writes the object with an empty `metadata.resourceVersion`; returns the offset between its quotes.
fn write_object(out: &mut Vec<u8>, object: &Map<String, Value>) -> Result<usize, serde_json::Error> {
    let empty = Map::new();
    let meta = object.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
    let mut revision_at = 0;
    let mut meta_written = false;
    out.push(b'{');
    for (key, value) in object {
        if !meta_written && key.as_str() >= "metadata" {
            revision_at = write_metadata(out, meta)?;
            meta_written = true;
        }
        if key != "metadata" {
            write_field(out, key, value)?;
        }
    }
    if !meta_written {
        revision_at = write_metadata(out, meta)?;
    }
    out.push(b'}');
    Ok(revision_at)
}

fn write_metadata(out: &mut Vec<u8>, meta: &Map<String, Value>) -> Result<usize, serde_json::Error> {
    separate(out);
    out.extend_from_slice(b"\"metadata\":{");
    let mut revision_at = None;
    for (key, value) in meta {
        if revision_at.is_none() && key.as_str() >= "resourceVersion" {
            revision_at = Some(write_revision(out));
        }
        if key != "resourceVersion" {
            write_field(out, key, value)?;
        }
    }
    let revision_at = revision_at.unwrap_or_else(|| write_revision(out));
    out.push(b'}');
    Ok(revision_at)
}

fn write_revision(out: &mut Vec<u8>) -> usize {
    separate(out);
    out.extend_from_slice(b"\"resourceVersion\":\"\"");
    out.len() - 1
}

fn write_field(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<(), serde_json::Error> {
    separate(out);
    serde_json::to_writer(&mut *out, key)?;
    out.push(b':');
    serde_json::to_writer(out, value)
}

fn separate(out: &mut Vec<u8>) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
}

/// Labels and selectable fields, sorted by key.
fn index(kind: &dyn Kind, object: &Object) -> Index {
    let labels = object.labels().map(|(key, value)| (Arc::from(key), Arc::from(value))).collect();
    let names = kind.selectable_fields();
    if names.is_empty() {
        return Index { labels, fields: Vec::new() };
    }
    let values = kind.field_values(object);
    let mut fields: Vec<(Arc<str>, Arc<str>)> =
        names.iter().zip(values).map(|(name, value)| (Arc::from(*name), Arc::from(value))).collect();
    fields.sort();
    Index { labels, fields }
}

/// Whether a draft says what is stored already.
pub(super) fn is_unchanged(draft: &Draft, entry: &Entry) -> bool {
    let (at, stored_at) = (draft.revision_at as usize, entry.revision_at as usize);
    let digits = digits(entry.revision);
    let (Some(head), Some(tail)) = (draft.body.get(..at), draft.body.get(at..)) else { return false };
    entry.bytes.get(..stored_at) == Some(head) && entry.bytes.get(stored_at + digits..) == Some(tail)
}

fn digits(revision: Revision) -> usize {
    revision.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// The same value under another revision: how a watcher sees an object leave its selector.
pub(super) fn with_revision(entry: &Entry, revision: Revision) -> Entry {
    let at = entry.revision_at as usize;
    let end = at + digits(entry.revision);
    let text = revision.to_string();
    let mut bytes = Vec::with_capacity(entry.bytes.len() + text.len());
    bytes.extend_from_slice(entry.bytes.get(..at).unwrap_or_default());
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(entry.bytes.get(end..).unwrap_or_default());
    Entry { bytes: bytes.into(), revision, ..entry.clone() }
}

/// An entry that was never stored: the answer to a dry run.
pub(super) fn unstored(key: String, kind: &dyn Kind, object: &Object) -> Arc<Entry> {
    let mut stored = object.clone();
    if !kind.is_stored_form() {
        kind.convert_to_storage(&mut stored);
    }
    let bytes = Bytes::from(stored.to_json());
    Arc::new(Entry { key: key.into(), revision: 0, created: 0, bytes, revision_at: 0, index: Index::default() })
}

/// How durable writes of a kind are: Lease renewals and Events stay off the path that waits for the disk.
pub(super) fn durability(kind: &dyn Kind) -> Durability {
    match (kind.names().group, kind.names().plural) {
        ("coordination.k8s.io", "leases") | ("" | "events.k8s.io", "events") => Durability::Relaxed,
        _ => Durability::Synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kinds;

    #[test]
    fn the_revision_stands_in_the_metadata() {
        let kinds = Kinds::builtin();
        let kind = kinds.find("", "v1", "configmaps").unwrap();
        for text in [
            r#"{"apiVersion":"v1","data":{"resourceVersion":""},"kind":"ConfigMap","metadata":{"name":"a","uid":"x"}}"#,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"5"}}"#,
            r#"{"apiVersion":"v1","kind":"ConfigMap"}"#,
            r#"{"zoo":1}"#,
        ] {
            let draft = draft(&*kind, &Object::from_json(text.as_bytes()).unwrap()).unwrap();
            let at = draft.revision_at as usize;
            let body = [&draft.body[..at], b"42", &draft.body[at..]].concat();
            assert_eq!(Object::from_json(&body).unwrap().resource_version(), "42");
            let entry = Entry {
                key: "k".into(),
                revision: 42,
                created: 1,
                bytes: body.into(),
                revision_at: draft.revision_at,
                index: Index::default(),
            };
            assert!(is_unchanged(&draft, &entry));
            let moved = with_revision(&entry, 1_000);
            assert_eq!(Object::from_json(&moved.bytes).unwrap().resource_version(), "1000");
        }
    }
}
