//! Reading one object.

use std::sync::Arc;

use super::{Registry, encode, key};
use crate::api::{ApiError, Kind, Object};
use crate::store::{CommitError, Entry};

impl Registry {
    /// The stored bytes of one object, as this server knows it.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, kind: &dyn Kind, namespace: &str, name: &str) -> Result<Arc<Entry>, ApiError> {
        self.store
            .snapshot()
            .get(&key(kind, namespace, name))
            .ok_or_else(|| ApiError::not_found(&kind.names().group_resource(), name))
    }

    /// One object, decoded, in the form of its kind.
    ///
    /// # Errors
    /// 404.
    pub fn get_object(&self, kind: &dyn Kind, namespace: &str, name: &str) -> Result<Object, ApiError> {
        encode::decode(kind, &*self.get(kind, namespace, name)?)
    }

    /// The object of an entry, in the form of `kind`.
    ///
    /// # Errors
    /// 500 when the stored bytes do not decode.
    pub fn decode(&self, kind: &dyn Kind, entry: &Entry) -> Result<Object, ApiError> {
        encode::decode(kind, entry)
    }

    /// Waits until this server knows every write that was acknowledged before the call: what a read without a
    /// `resourceVersion` asks for.
    ///
    /// # Errors
    /// 503 when there is no leader to ask.
    pub async fn fresh(&self) -> Result<(), ApiError> {
        self.store.barrier().await.map_err(|error| commit_error(&error))
    }
}

/// The answer to a commit that failed, other than by a guard.
pub(super) fn commit_error(error: &CommitError) -> ApiError {
    match error {
        CommitError::Busy => {
            ApiError::too_many_requests("the server has received too many requests and has asked us to try again later", 1)
        }
        CommitError::NoLeader(_) => ApiError::unavailable(error.to_string()),
        CommitError::Unknown(_) => ApiError::timeout(error.to_string()),
        CommitError::DiskFull { .. } | CommitError::Guard { .. } | CommitError::Invalid(_) => ApiError::internal(error),
    }
}
