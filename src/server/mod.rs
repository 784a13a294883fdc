//! The HTTP API server: what a request wants (`request_info`), the filters that every request passes (`filters/`), and the
//! handlers behind them (`handlers/`).

pub mod discovery;
pub mod handlers;
pub mod negotiate;

use std::sync::Arc;

use crate::auth::UserInfo;

/// What a request wants, read from method, path and query as upstream's `RequestInfoFactory` does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names an API resource.
    pub is_resource: bool,
    /// The path of the URL, without query.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; lower-case method otherwise.
    pub verb: String,
    /// "" for the core group.
    pub group: String,
    pub version: String,
    /// "" where the request names none.
    pub namespace: String,
    /// Plural.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource (`…/proxy/a/b`), without the leading slash.
    pub rest: String,
}

/// What every handler gets beside the request itself.
#[derive(Debug, Clone)]
pub struct RequestContext {
    pub info: RequestInfo,
    pub user: Arc<UserInfo>,
    /// Query parameters in the order given, decoded.
    pub query: Vec<(String, String)>,
}

impl RequestContext {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a query parameter says yes (`true`, `1`, or present without a value).
    pub fn flag(&self, name: &str) -> bool {
        self.query(name).is_some_and(|value| matches!(value, "" | "1" | "true" | "True" | "TRUE" | "t" | "T"))
    }
}
