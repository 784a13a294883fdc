//! List: one consistent snapshot, all pages of it, by index where a selector is exact (`storage/etcd3/store.go` `GetList`).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Registry, prefix};
use crate::api::field::{FieldError, Path};
use crate::api::selector::{Values, field, label};
use crate::api::status::{Cause, Reason};
use crate::api::{ApiError, Kind};
use crate::store::{Entry, Revision, Snapshot};

/// What a list asks for: the query parameters of the same names.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub labels: label::Selector,
    pub fields: field::Selector,
    /// 0: all.
    pub limit: usize,
    /// Where the page before ended; "" for the first.
    pub continue_token: String,
    pub resource_version: String,
    /// "", `Exact` or `NotOlderThan`.
    pub resource_version_match: String,
}

/// A list, or a page of one.
#[derive(Debug, Clone)]
pub struct Listing {
    pub entries: Vec<Arc<Entry>>,
    /// The revision that all of it was read at.
    pub revision: Revision,
    /// For the next page; "" on the last.
    pub continue_token: String,
    /// How many objects are left after this page, where that is known.
    pub remaining: Option<usize>,
}

/// `continue`, as upstream encodes it.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

const TOKEN_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

impl Registry {
    /// Lists the objects of a kind; namespace "" means all.
    ///
    /// # Errors
    /// 400 and 422 for options that make no sense, 410 when the revision or the token is too old, 504 when it is from the future.
    pub fn list(&self, kind: &dyn Kind, namespace: &str, options: &ListOptions) -> Result<Listing, ApiError> {
        check_options(options)?;
        check_fields(kind, &options.fields)?;
        let prefix = prefix(kind, namespace);
        let (snapshot, after) = self.snapshot_for(&prefix, options)?;
        let is_all = options.labels.is_everything() && options.fields.is_empty();
        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        let mut entries = Vec::new();
        let mut is_cut = false;
        for entry in candidates(&snapshot, &prefix, options, after.as_deref()) {
            if !is_all && !matches(entry, options) {
                continue;
            }
            if entries.len() == limit {
                is_cut = true;
                break;
            }
            entries.push(Arc::clone(entry));
        }
        let mut listing = Listing { entries, revision: snapshot.revision(), continue_token: String::new(), remaining: None };
        if let (true, Some(last)) = (is_cut, listing.entries.last()) {
            listing.continue_token = encode_token(listing.revision, last.key.strip_prefix(prefix.as_str()).unwrap_or(""))?;
            if is_all {
                listing.remaining = Some(match &after {
                    None => snapshot.count(&prefix).saturating_sub(listing.entries.len()),
                    Some(_) => snapshot.range(&prefix, Some(&last.key)).count(),
                });
            }
        }
        Ok(listing)
    }

    /// The snapshot that the options ask for, and the key that the page starts after.
    fn snapshot_for(&self, prefix: &str, options: &ListOptions) -> Result<(Snapshot, Option<String>), ApiError> {
        if !options.continue_token.is_empty() {
            let token = decode_token(&options.continue_token)?;
            let after = format!("{prefix}{}", token.start);
            // A token without a revision goes on with what is there now.
            let Ok(revision) = Revision::try_from(token.rv) else { return Ok((self.store.snapshot(), Some(after))) };
            let snapshot = self.store.snapshot_at(revision).map_err(|_| expired_token(&token.start))?;
            return Ok((snapshot, Some(after)));
        }
        let newest = self.store.snapshot();
        if options.resource_version.is_empty() || options.resource_version == "0" {
            return Ok((newest, None));
        }
        let revision = parse_revision(&options.resource_version)?;
        if revision > newest.revision() {
            return Err(too_large(revision, newest.revision()));
        }
        let is_exact =
            options.resource_version_match == "Exact" || (options.resource_version_match.is_empty() && options.limit > 0);
        if !is_exact {
            return Ok((newest, None));
        }
        let snapshot = self.store.snapshot_at(revision);
        Ok((snapshot.map_err(|_| ApiError::expired("The resourceVersion for the provided list is too old."))?, None))
    }
}

/// The entries that may match, in key order, after `after`: by index if a selector is exact.
fn candidates<'a>(
    snapshot: &'a Snapshot,
    prefix: &'a str,
    options: &ListOptions,
    after: Option<&str>,
) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
    let after_key = after.map(ToOwned::to_owned);
    let is_later = move |entry: &&Arc<Entry>| after_key.as_deref().is_none_or(|after| &*entry.key > after);
    let indexed = options.fields.requirements.iter().find(|term| term.equals && !term.field.starts_with("metadata."));
    if let Some(term) = indexed {
        return Box::new(snapshot.by_field(prefix, &term.field, &term.value).filter(is_later));
    }
    if let Some((key, value)) = options.labels.exact().next() {
        return Box::new(snapshot.by_label(prefix, key, value).filter(is_later));
    }
    Box::new(snapshot.range(prefix, after))
}

/// The fields of a stored object that a selector may ask about.
struct Fields<'a>(&'a Entry);

impl Values for Fields<'_> {
    fn value(&self, key: &str) -> Option<&str> {
        match key {
            "metadata.name" => Some(names_of(&self.0.key).1),
            "metadata.namespace" => Some(names_of(&self.0.key).0),
            other => self.0.index.fields.value(other),
        }
    }
}

/// Namespace ("" for a cluster-scoped object) and name in a storage key.
pub(super) fn names_of(key: &str) -> (&str, &str) {
    let rest = key.splitn(3, '/').nth(2).unwrap_or("");
    rest.split_once('/').unwrap_or(("", rest))
}

/// Whether a stored object is in the selection.
pub(super) fn matches(entry: &Entry, options: &ListOptions) -> bool {
    options.labels.matches(&entry.index.labels) && options.fields.matches(&Fields(entry))
}

/// Refuses field selectors that the kind does not know.
pub(super) fn check_fields(kind: &dyn Kind, fields: &field::Selector) -> Result<(), ApiError> {
    for term in &fields.requirements {
        let known = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace")
            || kind.selectable_fields().contains(&term.field.as_str());
        if !known {
            return Err(ApiError::bad_request(if kind.selectable_fields().is_empty() {
                format!("{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"", term.field)
            } else {
                format!("field label not supported: {}", term.field)
            }));
        }
    }
    Ok(())
}

fn check_options(options: &ListOptions) -> Result<(), ApiError> {
    let path = || Path::new("resourceVersionMatch");
    let wanted = options.resource_version_match.as_str();
    if wanted.is_empty() {
        if !options.continue_token.is_empty() && !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        return Ok(());
    }
    let mut errors = Vec::new();
    if options.resource_version.is_empty() {
        errors.push(FieldError::forbidden(path(), "resourceVersionMatch is forbidden unless resourceVersion is provided"));
    }
    if !options.continue_token.is_empty() {
        errors.push(FieldError::forbidden(path(), "resourceVersionMatch is forbidden when continue is provided"));
    }
    if !matches!(wanted, "Exact" | "NotOlderThan") {
        errors.push(FieldError::not_supported(path(), wanted, &["Exact", "NotOlderThan", ""]));
    }
    if wanted == "Exact" && options.resource_version == "0" {
        let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
        errors.push(FieldError::forbidden(path(), why));
    }
    invalid_options(&errors)
}

/// 422 about `ListOptions`, if there are errors.
pub(super) fn invalid_options(errors: &[FieldError]) -> Result<(), ApiError> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", errors)) }
}

/// A `resourceVersion` of a query.
///
/// # Errors
/// 400 in upstream's words.
pub(super) fn parse_revision(text: &str) -> Result<Revision, ApiError> {
    text.parse().map_err(|_| {
        let why = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let error = FieldError::invalid(Path::new("resourceVersion"), text, why);
        ApiError::bad_request(format!("resourceVersion: {}", error.body()))
    })
}

/// 504: this server has not got that far, or nobody has.
pub(super) fn too_large(wanted: Revision, current: Revision) -> ApiError {
    let message = format!("Too large resource version: {wanted}, current: {current}");
    let mut error = ApiError::new(504, Reason::Timeout, format!("Timeout: {message}"));
    error.details.causes = vec![Cause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        field: String::new(),
    }];
    error.details.retry_after_seconds = Some(1);
    error
}

fn encode_token(revision: Revision, last: &str) -> Result<String, ApiError> {
    let rv = i64::try_from(revision).map_err(ApiError::internal)?;
    token_text(rv, format!("{last}\0"))
}

fn token_text(rv: i64, start: String) -> Result<String, ApiError> {
    let token = Token { v: TOKEN_VERSION.to_owned(), rv, start };
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).map_err(ApiError::internal)?))
}

fn decode_token(text: &str) -> Result<Token, ApiError> {
    let invalid = |why: String| ApiError::bad_request(format!("continue key is not valid: {why}"));
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|error| invalid(error.to_string()))?;
    let mut token: Token = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if token.v != TOKEN_VERSION {
        return Err(invalid(format!("server does not recognize this encoded version \"{}\"", token.v)));
    }
    if token.start.is_empty() || token.start.starts_with('/') || token.start.contains("..") {
        return Err(invalid("encoded start key is invalid".to_owned()));
    }
    // The page starts after this key: the zero byte behind it says so upstream, where the start is included.
    if let Some(last) = token.start.strip_suffix('\0') {
        token.start = last.to_owned();
    }
    Ok(token)
}

/// 410 with a token that goes on with what is there now.
fn expired_token(start: &str) -> ApiError {
    let mut error = ApiError::expired(TOKEN_EXPIRED);
    if let Ok(token) = token_text(-1, format!("{start}\0")) {
        error.details.continue_token = token;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive() {
        let text = encode_token(7, "default/a").unwrap();
        let token = decode_token(&text).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "default/a"));
        for bad in ["%", "e30", ""] {
            assert_eq!(decode_token(bad).map(|_| ()).unwrap_err().code, 400);
        }
        assert_eq!(names_of("core/pods/ns/a"), ("ns", "a"));
        assert_eq!(names_of("core/nodes/a"), ("", "a"));
    }
}
