//! Images: look up, pull, load, remove.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ImportImageOptionsBuilder, ListImagesOptionsBuilder, RemoveImageOptionsBuilder,
    TagImageOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::Engine;
use crate::cri::{Image, PullProgress, Pulled, RegistryAuth, RuntimeError};
use crate::rt::limits::RUNTIME_CALL;

/// A pull may take as long as it needs, but not be silent for longer than this.
const PULL_SILENCE: Duration = Duration::from_secs(180);

/// Bytes of a tarball that are read at once.
const READ_BYTES: usize = 256 << 10;

impl Engine {
    pub(super) async fn find_image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        let client = self.client()?;
        match self.within("inspect image", RUNTIME_CALL, client.inspect_image(reference)).await {
            Ok(found) => Ok(Some(Image {
                id: found.id.unwrap_or_default(),
                tags: found.repo_tags.unwrap_or_default(),
                digests: found.repo_digests.unwrap_or_default(),
                size_bytes: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                user: found.config.and_then(|config| config.user).unwrap_or_default(),
            })),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let client = self.client()?;
        let options = ListImagesOptionsBuilder::new().all(false).build();
        let images = self.within("list images", RUNTIME_CALL, client.list_images(Some(options))).await?;
        let image = |summary: bollard::models::ImageSummary| Image {
            id: summary.id,
            tags: summary.repo_tags,
            digests: summary.repo_digests,
            size_bytes: u64::try_from(summary.size).unwrap_or(0),
            user: String::new(),
        };
        Ok(images.into_iter().map(image).collect())
    }

    pub(super) async fn pull_image(
        &self,
        reference: &str,
        auth: Option<&RegistryAuth>,
        progress: PullProgress<'_>,
    ) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let (name, tag) = name_and_tag(reference);
        let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
        let mut news = std::pin::pin!(client.create_image(Some(options), None, auth.map(credentials)));
        let mut layers = Layers::default();
        loop {
            let next = async { news.next().await.transpose() };
            let Some(news) = self.within("pull", PULL_SILENCE, next).await? else { return Ok(()) };
            layers.note(&news);
            progress(layers.sum());
        }
    }

    pub(super) async fn load_tarball(&self, tarball: &Path) -> Result<Vec<String>, RuntimeError> {
        let file = File::open(tarball).await;
        let file = file.map_err(|error| RuntimeError::Failed(format!("{}: {error}", tarball.display())))?;
        self.load_stream(ReaderStream::with_capacity(file, READ_BYTES)).await
    }

    pub(super) async fn load_stream(
        &self,
        tarball: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Vec<String>, RuntimeError> {
        let client = self.client()?;
        let options = ImportImageOptionsBuilder::new().quiet(true).build();
        let mut news = std::pin::pin!(client.import_image(options, bollard::body_try_stream(tarball), None));
        let mut loaded = Vec::new();
        loop {
            let next = async { news.next().await.transpose() };
            let Some(news) = self.within("load", RUNTIME_CALL, next).await? else { return Ok(loaded) };
            let lines = news.stream.unwrap_or_default();
            loaded.extend(lines.lines().filter_map(loaded_image));
        }
    }

    pub(super) async fn tag(&self, reference: &str, name: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let (repository, tag) = name_and_tag(name);
        // A digest is no name that can be given: what was pulled by it keeps it.
        if tag.contains(':') {
            return Ok(());
        }
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.within("tag image", RUNTIME_CALL, client.tag_image(reference, Some(options))).await
    }

    pub(super) async fn remove_image_by(&self, reference: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let options = RemoveImageOptionsBuilder::new().force(false).build();
        match self.within("remove image", RUNTIME_CALL, client.remove_image(reference, Some(options), None)).await {
            Ok(_) | Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// The image's name, and its tag or digest as the API wants it. Without a tag the API would pull all of them.
fn name_and_tag(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name_and_tag(name).0, digest);
    }
    // A colon before the last slash belongs to the registry's port.
    let last = reference.rfind('/').map_or(0, |slash| slash + 1);
    match reference[last..].rfind(':') {
        Some(colon) => (&reference[..last + colon], &reference[last + colon + 1..]),
        None => (reference, "latest"),
    }
}

fn credentials(auth: &RegistryAuth) -> DockerCredentials {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    DockerCredentials {
        username: some(&auth.username),
        password: some(&auth.password),
        serveraddress: some(&auth.server_address),
        identitytoken: some(&auth.identity_token),
        ..DockerCredentials::default()
    }
}

/// The layers of a pull, as the engine reports them one by one.
#[derive(Debug, Default)]
struct Layers(HashMap<String, Layer>);

#[derive(Debug, Clone, Copy, Default)]
struct Layer {
    bytes: u64,
    total_bytes: u64,
    is_done: bool,
}

impl Layers {
    fn note(&mut self, news: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&news.id, &news.status) else { return };
        // The first line has the tag where others have a layer.
        if status.starts_with("Pulling from") {
            return;
        }
        let layer = self.0.entry(id.clone()).or_default();
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        let detail = news.progress_detail.as_ref();
        match status.as_str() {
            "Downloading" => {
                layer.bytes = detail.and_then(|detail| number(detail.current)).unwrap_or(layer.bytes);
                layer.total_bytes = detail.and_then(|detail| number(detail.total)).unwrap_or(layer.total_bytes);
            }
            "Verifying Checksum" | "Download complete" | "Extracting" => layer.bytes = layer.total_bytes,
            "Pull complete" | "Already exists" => *layer = Layer { is_done: true, bytes: layer.total_bytes, ..*layer },
            _ => {}
        }
    }

    fn sum(&self) -> Pulled {
        let layers = self.0.values();
        Pulled {
            layers: self.0.len(),
            layers_done: layers.clone().filter(|layer| layer.is_done).count(),
            bytes: layers.clone().map(|layer| layer.bytes).sum(),
            total_bytes: layers.map(|layer| layer.total_bytes).sum(),
        }
    }
}

fn loaded_image(line: &str) -> Option<String> {
    let name = line.strip_prefix("Loaded image: ").or_else(|| line.strip_prefix("Loaded image ID: "))?;
    Some(name.trim().to_owned())
}

/// Whether the engine said that the image is not there, as opposed to the container.
pub(super) fn is_missing_image(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::NotFound(words) if words.contains("No such image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_references() {
        let cases = [
            ("nginx", "nginx", "latest"),
            ("nginx:1.14", "nginx", "1.14"),
            ("localhost:5000/a/nginx", "localhost:5000/a/nginx", "latest"),
            ("localhost:5000/a/nginx:1", "localhost:5000/a/nginx", "1"),
            ("nginx@sha256:ab", "nginx", "sha256:ab"),
            ("r.io:1/nginx:2@sha256:ab", "r.io:1/nginx", "sha256:ab"),
        ];
        for (reference, name, tag) in cases {
            assert_eq!(name_and_tag(reference), (name, tag), "{reference}");
        }
    }

    #[test]
    fn layers_add_up() {
        let news = |id: &str, status: &str, detail: &str| -> CreateImageInfo {
            let detail: serde_json::Value = serde_json::from_str(detail).unwrap();
            serde_json::from_value(serde_json::json!({"id": id, "status": status, "progressDetail": detail})).unwrap()
        };
        let mut layers = Layers::default();
        for (id, status, detail) in [
            ("1.0", "Pulling from team/app", "{}"),
            ("a", "Already exists", "{}"),
            ("b", "Pulling fs layer", "{}"),
            ("c", "Pulling fs layer", "{}"),
            ("b", "Downloading", r#"{"current": 10, "total": 100}"#),
            ("c", "Downloading", r#"{"current": 5, "total": 50}"#),
            ("c", "Download complete", "{}"),
            ("c", "Extracting", r#"{"current": 1, "total": 50}"#),
        ] {
            layers.note(&news(id, status, detail));
        }
        assert_eq!(layers.sum(), Pulled { layers: 3, layers_done: 1, bytes: 60, total_bytes: 150 });
        layers.note(&news("c", "Pull complete", "{}"));
        assert_eq!(layers.sum().layers_done, 2);
    }

    #[test]
    fn reads_what_was_loaded() {
        assert_eq!(loaded_image("Loaded image: a:1").as_deref(), Some("a:1"));
        assert_eq!(loaded_image("Loaded image ID: sha256:ab").as_deref(), Some("sha256:ab"));
        assert_eq!(loaded_image("Loading layer"), None);
    }
}
