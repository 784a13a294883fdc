//! Content negotiation: what the client accepts (`endpoints/handlers/negotiation`).

use ::http::{HeaderMap, header};

use crate::api::ApiError;

/// An encoding of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Json, "application/json"),
        (Self::Yaml, "application/yaml"),
        (Self::Protobuf, "application/vnd.kubernetes.protobuf"),
    ];

    /// The media type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "*/*" | "application/*" => Some(Self::Json),
            _ => Self::ALL.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)).map(|(media, _)| *media),
        }
    }
}

/// The media type of server-side apply.
pub const APPLY: &str = "application/apply-patch+yaml";

/// Whether the body is a server-side apply.
pub fn is_apply(headers: &HeaderMap) -> bool {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    text.split(';').next().is_some_and(|name| name.trim() == APPLY)
}

/// What an object is turned into before it is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it is.
    Whole,
    /// `meta.k8s.io` `Table` of this version.
    Table(&'static str),
    /// `PartialObjectMetadata`, or the list of it, of this version.
    Partial(&'static str),
}

/// How an answer is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    pub media: Media,
    pub form: Form,
}

impl Accepted {
    /// Plain JSON.
    pub const JSON: Self = Self { media: Media::Json, form: Form::Whole };
}

/// The first clause of `Accept` that this server can answer; JSON where there is none, and rather than protobuf where both
/// will do.
///
/// # Errors
/// 406 when no clause can be answered.
pub fn accepted(headers: &HeaderMap) -> Result<Accepted, ApiError> {
    let Some(value) = headers.get(header::ACCEPT) else { return Ok(Accepted::JSON) };
    let text = value.to_str().unwrap_or("");
    if text.is_empty() || text == "application/json" {
        return Ok(Accepted::JSON);
    }
    let first = text.split(',').find_map(clause).ok_or_else(|| {
        let names: Vec<&str> = Media::ALL.iter().map(|(_, name)| *name).collect();
        ApiError::not_acceptable(&names)
    })?;
    // Objects are stored as JSON: who takes that too gets the stored bytes.
    let takes_json = || text.split(',').any(|one| clause(one) == Some(Accepted::JSON));
    if first.media == Media::Protobuf && first.form == Form::Whole && takes_json() {
        return Ok(Accepted::JSON);
    }
    Ok(first)
}

fn clause(text: &str) -> Option<Accepted> {
    let mut parts = text.split(';').map(str::trim);
    let media = Media::parse(parts.next()?)?;
    let (mut form, mut version, mut group) = (None, "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", name)) => form = Some(name),
            Some(("v", name)) => version = name,
            Some(("g", name)) => group = name,
            _ => {}
        }
    }
    let Some(form) = form else { return Some(Accepted { media, form: Form::Whole }) };
    let version = match (group, version) {
        ("meta.k8s.io", "v1") => "meta.k8s.io/v1",
        ("meta.k8s.io", "v1beta1") => "meta.k8s.io/v1beta1",
        _ => return None,
    };
    let form = match form {
        "Table" => Form::Table(version),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Form::Partial(version),
        _ => return None,
    };
    // Tables and metadata are made as JSON.
    Some(Accepted { media: if media == Media::Protobuf { Media::Json } else { media }, form })
}

/// The encoding of a request body.
///
/// # Errors
/// 415.
pub fn content_type(headers: &HeaderMap) -> Result<Media, ApiError> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let name = text.split(';').next().unwrap_or("").trim();
    match name {
        "" | "application/json" => Ok(Media::Json),
        "application/x-www-form-urlencoded" => Ok(Media::Json),
        _ => Media::parse(name).filter(|_| !name.contains('*')).ok_or_else(|| {
            let names: Vec<&str> = Media::ALL.iter().map(|(_, name)| *name).collect();
            ApiError::unsupported_media_type(&names)
        }),
    }
}

/// Whether the client takes gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let text = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or("");
    text.split(',').any(|one| one.split(';').next().unwrap_or("").trim() == "gzip")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clause_that_can_be_answered() {
        const V1: &str = "meta.k8s.io/v1";
        let whole = |media| Some(Accepted { media, form: Form::Whole });
        for (accept, expected) in [
            ("", whole(Media::Json)),
            ("*/*", whole(Media::Json)),
            ("application/json", whole(Media::Json)),
            ("application/vnd.kubernetes.protobuf,application/json", whole(Media::Json)),
            ("application/vnd.kubernetes.protobuf", whole(Media::Protobuf)),
            ("text/html, application/yaml", whole(Media::Yaml)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(Accepted { media: Media::Json, form: Form::Table(V1) }),
            ),
            ("application/json;as=Thing;v=v1;g=x,application/json", whole(Media::Json)),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                Some(Accepted { media: Media::Json, form: Form::Partial(V1) }),
            ),
            ("text/plain", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!(accepted(&headers).ok(), expected, "{accept}");
        }
    }
}
