//! Who is asking ([`authn`]) and whether they may ([`authz`]). Reads what it needs from the store's newest snapshot; writes nothing.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use crate::store::Entry;

pub mod authn;
pub mod authz;
pub mod identity;
pub mod tokens;

pub use authn::{Authenticator, AuthnConfig, CertificateUser, Unauthenticated};
pub use authz::Authorizer;

/// The user of a request without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of all who have shown who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of all who have not.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The group that may do everything.
pub const MASTERS: &str = "system:masters";

/// A user, as authentication found it: `user.Info` of upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user by name and groups.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self { name: name.to_owned(), groups: groups.iter().map(|group| (*group).to_owned()).collect(), ..Self::default() }
    }

    /// The user of a request without credentials.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let group = format!("system:serviceaccounts:{namespace}");
        Self::new(&format!("system:serviceaccount:{namespace}:{name}"), &["system:serviceaccounts", &group])
    }

    /// Whether the user is in `system:masters`, who may do everything.
    pub fn is_master(&self) -> bool {
        self.is_in(MASTERS)
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// The node, for a user `system:node:NAME` in the group `system:nodes`.
    pub fn node_name(&self) -> Option<&str> {
        self.name.strip_prefix("system:node:").filter(|name| !name.is_empty() && self.is_in("system:nodes"))
    }

    /// The user with the group that everybody gets who has shown who they are.
    #[must_use]
    pub fn authenticated(mut self) -> Self {
        if self.name != ANONYMOUS && !self.is_in(AUTHENTICATED) && !self.is_in(UNAUTHENTICATED) {
            self.groups.push(AUTHENTICATED.to_owned());
        }
        self
    }
}

/// What somebody wants to do: the input of authorization.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `create`, …; for non-resource paths the lower-case HTTP method.
    pub verb: String,
    pub namespace: String,
    pub group: String,
    pub version: String,
    /// Plural; "" for a non-resource path.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Of a list or watch, as it stands in the query.
    pub label_selector: String,
    /// The same.
    pub field_selector: String,
    /// The path of the URL.
    pub path: String,
    pub is_resource: bool,
}

impl Attributes {
    /// A verb on a resource of a group.
    pub fn resource(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Self::default()
        }
    }

    /// A method on a path that is no resource.
    pub fn path(verb: &str, path: &str) -> Self {
        Self { verb: verb.to_owned(), path: path.to_owned(), ..Self::default() }
    }
}

/// What authorization says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    /// Nobody allowed it; the text goes behind `cannot … :` in the message.
    NoOpinion {
        reason: String,
    },
}

impl Decision {
    /// Whether it is allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// Decodes a stored object; one that does not decode counts as absent, which can only take rights away.
fn decode<K: DeserializeOwned>(entry: &Entry) -> Option<K> {
    match serde_json::from_slice(&entry.bytes) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(key = %entry.key, %error, "a stored object does not decode");
            None
        }
    }
}
