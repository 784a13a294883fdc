//! Who is asking (`authn`) and whether they may (`authz`).

use std::collections::BTreeMap;

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

    /// Whether the user is in `system:masters`, who may do everything.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
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
    /// The path of the URL.
    pub path: String,
    pub is_resource: bool,
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
