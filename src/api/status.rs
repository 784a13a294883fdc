//! [`ApiError`]: the one error that reaches a client, a `metav1.Status` in the words of `apimachinery/pkg/api/errors`.

use std::fmt;

use serde_json::{Value, json};

use super::field::FieldError;

/// Machine-readable cause inside `details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A failed request: HTTP code, `reason`, human message, and details.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    pub details: Box<Details>,
}

/// `status.details`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Details {
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
    /// `metadata.continue`: how a list goes on whose token expired; "" for none.
    pub continue_token: String,
}

/// `status.reason`; [`Reason::Unknown`] is the empty string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    ServerTimeout,
    StoreReadError,
    Timeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

impl Reason {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Invalid => "Invalid",
            Self::ServerTimeout => "ServerTimeout",
            Self::StoreReadError => "StorageReadError",
            Self::Timeout => "Timeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::Expired => "Expired",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    /// The reason for a word on the wire.
    pub fn parse(word: &str) -> Self {
        use Reason::*;
        [
            Unauthorized,
            Forbidden,
            NotFound,
            AlreadyExists,
            Conflict,
            Gone,
            Invalid,
            ServerTimeout,
            StoreReadError,
            Timeout,
            TooManyRequests,
            BadRequest,
            MethodNotAllowed,
            NotAcceptable,
            RequestEntityTooLarge,
            UnsupportedMediaType,
            InternalError,
            Expired,
            ServiceUnavailable,
        ]
        .into_iter()
        .find(|reason| reason.as_str() == word)
        .unwrap_or(Unknown)
    }
}

/// `group` and `resource` (plural) as they stand in messages: `deployments.apps`, `pods`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupResource<'a> {
    pub group: &'a str,
    pub resource: &'a str,
}

impl fmt::Display for GroupResource<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            formatter.write_str(self.resource)
        } else {
            write!(formatter, "{}.{}", self.resource, self.group)
        }
    }
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Box::default() }
    }

    fn about(mut self, resource: &GroupResource<'_>, name: &str) -> Self {
        self.details.group = resource.group.to_owned();
        self.details.kind = resource.resource.to_owned();
        self.details.name = name.to_owned();
        self
    }

    /// 404: no such object.
    pub fn not_found(resource: &GroupResource<'_>, name: &str) -> Self {
        Self::new(404, Reason::NotFound, format!("{resource} {name:?} not found")).about(resource, name)
    }

    /// 404: no such path, in the words kubectl knows.
    pub fn no_such_path() -> Self {
        Self::new(404, Reason::NotFound, "the server could not find the requested resource")
    }

    /// 409: the name is taken.
    pub fn already_exists(resource: &GroupResource<'_>, name: &str) -> Self {
        Self::new(409, Reason::AlreadyExists, format!("{resource} {name:?} already exists")).about(resource, name)
    }

    /// 409: the object changed since it was read, or the operation cannot be done in its present state.
    pub fn conflict(resource: &GroupResource<'_>, name: &str, why: impl fmt::Display) -> Self {
        Self::new(409, Reason::Conflict, format!("Operation cannot be fulfilled on {resource} {name:?}: {why}"))
            .about(resource, name)
    }

    /// 409 of optimistic locking.
    pub fn modified(resource: &GroupResource<'_>, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422: the object is not valid. `kind` is the kind (`Pod`), not the resource, as upstream has it.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let what = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let message = match errors {
            [only] => format!("{what} {name:?} is invalid: {only}"),
            many => {
                let texts: Vec<String> = many.iter().map(ToString::to_string).collect();
                format!("{what} {name:?} is invalid: [{}]", texts.join(", "))
            }
        };
        let mut error = Self::new(422, Reason::Invalid, message).about(&GroupResource { group, resource: kind }, name);
        error.details.causes = errors
            .iter()
            .map(|one| Cause { reason: one.problem.reason().to_owned(), message: one.body(), field: one.path.to_string() })
            .collect();
        error
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 403 for an object.
    pub fn forbidden(resource: &GroupResource<'_>, name: &str, why: impl fmt::Display) -> Self {
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} {name:?} is forbidden: {why}")
        };
        Self::new(403, Reason::Forbidden, message).about(resource, name)
    }

    /// 405.
    pub fn method_not_allowed(verb: &str, resource: &GroupResource<'_>) -> Self {
        Self::new(405, Reason::MethodNotAllowed, format!("{verb} is not supported on resources of kind \"{resource}\""))
            .about(resource, "")
    }

    /// 406.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        Self::new(406, Reason::NotAcceptable, format!("only the following media types are accepted: {}", accepted.join(", ")))
    }

    /// 410: a revision that is no longer held, for watch, list at a revision and `continue`.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, Reason::RequestEntityTooLarge, message)
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            Reason::UnsupportedMediaType,
            format!("the body of the request was in an unknown format - accepted media types include: {}", accepted.join(", ")),
        )
    }

    /// 429, with the seconds after which to try again.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let mut error = Self::new(429, Reason::TooManyRequests, message);
        error.details.retry_after_seconds = Some(retry_after_seconds);
        error
    }

    /// 500.
    pub fn internal(message: impl fmt::Display) -> Self {
        let mut error = Self::new(500, Reason::InternalError, format!("Internal error occurred: {message}"));
        error.details.causes = vec![Cause { reason: String::new(), message: message.to_string(), field: String::new() }];
        error
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message)
    }

    /// 504: the request took too long.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, Reason::Timeout, message)
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    /// Whether optimistic locking refused the write: read again and retry.
    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    /// Whether the name was taken.
    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }

    /// Whether the revision asked for is no longer held: list again.
    pub fn is_expired(&self) -> bool {
        matches!(self.reason, Reason::Expired | Reason::Gone)
    }

    /// The `metav1.Status` for the wire.
    pub fn to_value(&self) -> Value {
        let details = &self.details;
        let mut out = serde_json::Map::new();
        let texts = [("name", &details.name), ("group", &details.group), ("kind", &details.kind), ("uid", &details.uid)];
        out.extend(texts.into_iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| (key.to_owned(), json!(text))));
        if !details.causes.is_empty() {
            let causes = details.causes.iter().map(Cause::to_value).collect();
            out.insert("causes".to_owned(), Value::Array(causes));
        }
        if let Some(seconds) = details.retry_after_seconds {
            out.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message, "code": self.code});
        if self.reason != Reason::Unknown {
            status["reason"] = json!(self.reason.as_str());
        }
        if !details.continue_token.is_empty() {
            status["metadata"]["continue"] = json!(details.continue_token);
        }
        if !out.is_empty() {
            status["details"] = Value::Object(out);
        }
        status
    }

    /// Reads a `metav1.Status` that a server sent; `code` is used where the body has none.
    pub fn from_value(code: u16, status: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let details = &status["details"];
        let causes = details["causes"].as_array().into_iter().flatten();
        let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(code);
        Self {
            code,
            reason: Reason::parse(status["reason"].as_str().unwrap_or("")),
            message: text(&status["message"]),
            details: Box::new(Details {
                name: text(&details["name"]),
                group: text(&details["group"]),
                kind: text(&details["kind"]),
                uid: text(&details["uid"]),
                causes: causes
                    .map(|cause| Cause {
                        reason: text(&cause["reason"]),
                        message: text(&cause["message"]),
                        field: text(&cause["field"]),
                    })
                    .collect(),
                continue_token: text(&status["metadata"]["continue"]),
                retry_after_seconds: details["retryAfterSeconds"].as_u64().and_then(|seconds| u32::try_from(seconds).ok()),
            }),
        }
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut map = serde_json::Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                map.insert(key.to_owned(), json!(text));
            }
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let pods = GroupResource { group: "apps", resource: "deployments" };
        for error in [
            ApiError::not_found(&pods, "web"),
            ApiError::modified(&pods, "web"),
            ApiError::invalid("apps", "Deployment", "web", &[FieldError::required("spec.selector".into(), "")]),
            ApiError::too_many_requests("busy", 1),
        ] {
            assert_eq!(ApiError::from_value(error.code, &error.to_value()), error);
        }
        assert_eq!(ApiError::not_found(&pods, "web").message, "deployments.apps \"web\" not found");
    }
}
