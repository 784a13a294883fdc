//! The pods last known, on disk: the agent works from them when the API is away, across its own restart too.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;

/// A directory with one file a pod.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    directory: PathBuf,
}

impl Checkpoints {
    /// Checkpoints in a directory, which is made when it is needed.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.directory.join(format!("{uid}.json"))
    }

    /// All pods that were kept. A file that does not decode is removed: the API has the pod, if there is one.
    pub async fn load(&self) -> Vec<Pod> {
        let Ok(mut entries) = tokio::fs::read_dir(&self.directory).await else { return Vec::new() };
        let mut pods = Vec::new();
        while let Ok(Some(entry)) = entries.next_entry().await {
            let path = entry.path();
            let decoded = match tokio::fs::read(&path).await {
                Ok(bytes) => serde_json::from_slice::<Pod>(&bytes).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match decoded {
                Ok(pod) => pods.push(pod),
                Err(error) => {
                    tracing::warn!(path = %path.display(), error, "a pod's checkpoint is damaged; it is dropped");
                    self.drop_file(&path).await;
                }
            }
        }
        pods
    }

    /// Keeps a pod. A failure costs only what the agent knows after a restart without the API.
    pub async fn save(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or("");
        let written = async {
            let bytes = serde_json::to_vec(pod)?;
            tokio::fs::create_dir_all(&self.directory).await?;
            let half = self.directory.join(format!(".{uid}"));
            tokio::fs::write(&half, bytes).await?;
            tokio::fs::rename(&half, self.path(uid)).await
        };
        if let Err(error) = written.await {
            tracing::warn!(uid, %error, "the pod's checkpoint was not written");
        }
    }

    /// Forgets a pod.
    pub async fn remove(&self, uid: &str) {
        self.drop_file(&self.path(uid)).await;
    }

    async fn drop_file(&self, path: &std::path::Path) {
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a pod's checkpoint was not removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_and_forgets() {
        let directory = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(directory.path().join("pods"));
        assert!(checkpoints.load().await.is_empty());
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u1".to_owned());
        checkpoints.save(&pod).await;
        tokio::fs::write(directory.path().join("pods/u2.json"), b"{").await.unwrap();
        assert_eq!(checkpoints.load().await, [pod]);
        assert_eq!(std::fs::read_dir(directory.path().join("pods")).unwrap().count(), 1);
        checkpoints.remove("u1").await;
        assert!(checkpoints.load().await.is_empty());
    }
}
