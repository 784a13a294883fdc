//! What containers of a pod take from the API into their environment, kept beside the pod: while the API is away, across the agent's
//! own restart too, a container that crashed starts again from what was last known. Secrets are kept in memory only (tmpfs).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::Context;
use crate::agent::sources::{FIRST_LOOK, SourceError};
use crate::agent::volume;
use crate::rt::TaskGroup;

/// How long to wait for the API when there is something to fall back to.
const SHORT_LOOK: Duration = Duration::from_secs(1);

/// The pod whose things are meant.
#[derive(Clone, Copy)]
pub(super) struct Recall<'a> {
    pub context: &'a Context,
    pub uid: &'a str,
    pub namespace: &'a str,
}

impl Recall<'_> {
    /// A ConfigMap of the pod's namespace.
    ///
    /// # Errors
    /// [`SourceError`] when neither the API nor what was kept tells.
    pub(super) async fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>, SourceError> {
        let place = Place { directory: "recall", is_secret: false, file: format!("configmap.{name}.json") };
        let sources = &self.context.sources;
        let known = self.known::<ConfigMap>(&place).await;
        let patience = if known.is_some() { SHORT_LOOK } else { FIRST_LOOK };
        match sources.config_map(self.uid, self.namespace, name, patience).await {
            Ok(found) => {
                self.keep(&place, found.as_deref(), known.as_ref()).await;
                Ok(found)
            }
            Err(error) => known.map(|known| Some(Arc::new(known))).ok_or(error),
        }
    }

    /// A Secret of the pod's namespace.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub(super) async fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>, SourceError> {
        let place = Place { directory: "recall-secrets", is_secret: true, file: format!("secret.{name}.json") };
        let sources = &self.context.sources;
        let known = self.known::<Secret>(&place).await;
        let patience = if known.is_some() { SHORT_LOOK } else { FIRST_LOOK };
        match sources.secret(self.uid, self.namespace, name, patience).await {
            Ok(found) => {
                self.keep(&place, found.as_deref(), known.as_ref()).await;
                Ok(found)
            }
            Err(error) => known.map(|known| Some(Arc::new(known))).ok_or(error),
        }
    }

    /// The variables that tell of Services, worked out by `variables`.
    ///
    /// # Errors
    /// As [`config_map`](Self::config_map).
    pub(super) async fn services<V: Serialize + DeserializeOwned + PartialEq + Sync>(
        &self,
        variables: impl FnOnce(&[Arc<Service>]) -> V + Send,
    ) -> Result<V, SourceError> {
        let place = Place { directory: "recall", is_secret: false, file: "services.json".to_owned() };
        let known = self.known::<V>(&place).await;
        let patience = if known.is_some() { SHORT_LOOK } else { FIRST_LOOK };
        match self.context.sources.services(patience).await {
            Ok(services) => {
                let variables = variables(&services);
                self.keep(&place, Some(&variables), known.as_ref()).await;
                Ok(variables)
            }
            Err(error) => known.ok_or(error),
        }
    }

    fn path(&self, place: &Place) -> PathBuf {
        self.context.pods_dir.join(self.uid).join(place.directory).join(&place.file)
    }

    async fn known<T: DeserializeOwned>(&self, place: &Place) -> Option<T> {
        let bytes = tokio::fs::read(self.path(place)).await.ok()?;
        serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(uid = self.uid, %error, "what was kept is damaged"))
            .ok()
    }

    /// Keeps a value, or forgets the one that was kept. A failure costs only what is known while the API is away.
    async fn keep<T: Serialize + PartialEq>(&self, place: &Place, value: Option<&T>, known: Option<&T>) {
        if value == known {
            return;
        }
        let (path, is_secret) = (self.path(place), place.is_secret);
        let bytes = value.map(serde_json::to_vec).transpose();
        let work = move || -> std::io::Result<()> {
            match bytes? {
                Some(bytes) => {
                    if let Some(directory) = path.parent().filter(|_| is_secret) {
                        volume::keep_in_memory(directory)?;
                    }
                    write(&path, &bytes)
                }
                None => std::fs::remove_file(&path),
            }
        };
        match TaskGroup::blocking(work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(uid = self.uid, %error, "not kept for a time without the API"),
            Err(error) => tracing::debug!(uid = self.uid, %error, "not kept for a time without the API"),
        }
    }
}

/// Writes a file as a whole, but does not wait for the disk: a container starts after this.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let draft = path.with_extension("draft");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    std::fs::rename(&draft, path)
}

struct Place {
    directory: &'static str,
    is_secret: bool,
    file: String,
}
