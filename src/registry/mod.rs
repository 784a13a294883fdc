//! Generic REST semantics over `Kind` and `Store`: the only writer of objects. One verb per file.
//!
//! A verb is: read current, apply the change, default, mutate (admission), prepare, validate, validate (admission), commit; on a
//! conflict that the client did not ask for, again from "read current".

use async_trait::async_trait;

use crate::api::kind::Subresource;
use crate::api::{ApiError, Kind, Object};
use crate::auth::UserInfo;

/// What admission is told of a write.
pub struct Attributes<'a> {
    pub kind: &'a dyn Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    pub operation: Operation,
    pub subresource: Option<Subresource>,
    pub user: &'a UserInfo,
    pub dry_run: bool,
}

/// The operation that admission is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// Admission, handed in by `server`: the registry does not know the plugins. Texts pushed to `warnings` become `Warning` headers.
#[async_trait]
pub trait Admit: Send + Sync {
    /// May change the object.
    ///
    /// # Errors
    /// The refusal, as the client gets it.
    async fn mutate(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Object,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError>;

    /// Sees the object as it will be stored (`None` on delete).
    ///
    /// # Errors
    /// The refusal, as the client gets it.
    async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        warnings: &mut Vec<String>,
    ) -> Result<(), ApiError>;
}
