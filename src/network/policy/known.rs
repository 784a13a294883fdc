//! What was last known of policies, namespaces and pods, in a file: an agent that starts while the API is away filters new pods
//! by it. That there is no policy is knowledge too.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use super::facts::{NamespaceFacts, PodFacts};
use super::planner::Planner;
use crate::rt::{TaskGroup, files};

/// Everything that the planner works from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) policies: Vec<Arc<NetworkPolicy>>,
    pub(super) namespaces: Vec<Arc<NamespaceFacts>>,
    pub(super) pods: Vec<Arc<PodFacts>>,
}

impl Known {
    /// Reads the file. A damaged one is as good as none.
    pub(super) async fn load(path: PathBuf) -> Option<Self> {
        let shown = path.display().to_string();
        let read = move || std::fs::read(path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match TaskGroup::blocking(read).await.map_err(io::Error::other).flatten() {
            Ok(known) => Some(known),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = shown, %error, "the network policies last known cannot be read");
                None
            }
        }
    }

    /// Writes the file, unless it says the same.
    pub(super) async fn save(self, path: PathBuf) {
        let shown = path.display().to_string();
        let write = move || {
            let bytes = serde_json::to_vec(&self)?;
            if std::fs::read(&path).is_ok_and(|before| before == bytes) { Ok(()) } else { files::write(&path, &bytes, 0o600) }
        };
        if let Err(error) = TaskGroup::blocking(write).await.map_err(io::Error::other).flatten() {
            tracing::warn!(path = shown, %error, "the network policies were not noted");
        }
    }

    /// Tells a planner all of it.
    pub(super) fn teach(&self, planner: &mut Planner) {
        self.namespaces.iter().for_each(|namespace| planner.set_namespace(&namespace.name, Some(namespace.labels.clone())));
        self.pods.iter().for_each(|pod| planner.put_pod(pod));
        self.policies.iter().for_each(|policy| planner.put_policy(policy));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network/policy.json");
        assert_eq!(Known::load(path.clone()).await, None);
        let known: Known = serde_json::from_value(json!({
            "policies": [{ "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "p" }, "spec": { "podSelector": {} } }],
            "namespaces": [{ "metadata": { "name": "shop", "labels": { "a": "b" } } }],
            "pods": [{ "metadata": { "name": "web", "uid": "u" }, "status": { "podIP": "10.0.0.1" } }],
        }))
        .unwrap();
        known.clone().save(path.clone()).await;
        assert_eq!(Known::load(path.clone()).await, Some(known));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Known::load(path).await, None);
    }
}
