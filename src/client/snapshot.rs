//! What an informer held, in a file: written in the background some time after a change, read at the next start before the first
//! list, so that a process that starts while no server answers knows what it last knew.
//!
//! A snapshot is old from the moment it is written. The first list corrects it, and subscribers are told the difference. Secrets are
//! never written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ApiObject;
use super::informer::Informer;
use crate::rt::{TaskGroup, clock, files};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_secs(1);
/// Shortest time between two writes.
const INTERVAL: Duration = Duration::from_secs(10);
/// Writing takes at most this part of the time.
const SHARE: u32 = 50;

#[derive(Serialize)]
struct Written<'a, K> {
    items: &'a [Arc<K>],
}

#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

/// Where the objects of a kind are kept below `folder`; `None` for a kind that must not be. `name` tells a selection from all.
pub(super) fn path<K: ApiObject>(folder: &Path, name: Option<&str>) -> Option<PathBuf> {
    if K::GROUP.is_empty() && K::KIND == "Secret" {
        return None;
    }
    let group = if K::GROUP.is_empty() { "core" } else { K::GROUP };
    let name = name.map(|name| format!(".{name}")).unwrap_or_default();
    Some(folder.join(format!("{}.{group}{name}.json", K::URL_PATH_SEGMENT)))
}

/// The objects of a snapshot; none if there is none, or it cannot be read.
pub(super) async fn load<T: DeserializeOwned + Send + 'static>(path: PathBuf) -> Vec<T> {
    let shown = path.display().to_string();
    match TaskGroup::blocking(move || read(&path)).await {
        Ok(Ok(objects)) => objects,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Ok(Err(error)) => {
            tracing::warn!(path = shown, %error, "a snapshot cannot be read and is left out");
            Vec::new()
        }
        Err(error) => {
            tracing::warn!(path = shown, %error, "a snapshot was not read");
            Vec::new()
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let bytes = std::fs::read(path)?;
    let snapshot: Read<'_> = serde_json::from_slice(&bytes)?;
    // An object that this version does not understand must not hide the others.
    let decode = |item: &&RawValue| {
        let decoded = serde_json::from_str(item.get());
        decoded.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "an object of a snapshot is left out")).ok()
    };
    Ok(snapshot.items.iter().filter_map(decode).collect())
}

/// Writes what an informer holds after each change, until the group is cancelled; what changed last is written then too.
pub(super) fn keep<K: ApiObject>(tasks: &TaskGroup, path: PathBuf, informer: &Arc<Informer<K>>) {
    let (token, informer) = (tasks.token(), Arc::clone(informer));
    let mut changes = informer.subscribe();
    tasks.spawn(async move {
        let mut wait = GATHER;
        loop {
            let is_stopping = match token.run_until_cancelled(changes.next()).await {
                Some(Some(_)) => token.run_until_cancelled(tokio::time::sleep(wait)).await.is_none(),
                None if changes.try_next().is_some() => true,
                None | Some(None) => return,
            };
            while changes.try_next().is_some() {}
            // Before the first list there is nothing but what came from the file.
            if informer.is_listed() {
                let started = clock::instant();
                write(&path, informer.list()).await;
                wait = INTERVAL.max(started.elapsed() * SHARE);
            }
            if is_stopping {
                return;
            }
        }
    });
}

async fn write<K: ApiObject>(path: &Path, objects: Vec<Arc<K>>) {
    let file = path.to_owned();
    let written = TaskGroup::blocking(move || {
        let bytes = serde_json::to_vec(&Written { items: &objects })?;
        files::write(&file, &bytes, 0o600)
    });
    let failed = match written.await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(path = %path.display(), error = failed, "a snapshot was not written");
}

#[cfg(test)]
mod tests {
    use ::http::Response;
    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use tokio::sync::watch;

    use super::super::informer::{Change, Informers, Subscription};
    use super::super::{Client, Transport};
    use super::*;
    use crate::http::{BoxError, HttpRequest, HttpResponse, full};

    /// Answers a list once it has one; a watch never says anything.
    struct Api(watch::Receiver<Option<String>>);

    #[async_trait]
    impl Transport for Api {
        async fn send(&self, request: HttpRequest) -> Result<HttpResponse, BoxError> {
            if request.uri().query().is_some_and(|query| query.contains("watch=1")) {
                return std::future::pending().await;
            }
            let list = self.0.clone().wait_for(Option::is_some).await?.clone().unwrap_or_default();
            Ok(Response::new(full(list)))
        }
    }

    fn map(name: &str, uid: &str, revision: u32) -> String {
        format!(r#"{{"metadata":{{"namespace":"n","name":"{name}","uid":"{uid}","resourceVersion":"{revision}"}}}}"#)
    }

    async fn told(changes: &mut Subscription<ConfigMap>, count: usize) -> Vec<String> {
        let name = |map: &ConfigMap| map.metadata.name.clone().unwrap();
        let mut told = Vec::new();
        while told.len() < count {
            told.push(match changes.next().await.unwrap() {
                Change::Applied { old, new } => format!("{}{}", if old.is_some() { "~" } else { "+" }, name(&new)),
                Change::Deleted(old) => format!("-{}", name(&old)),
                Change::Synced => "synced".to_owned(),
            });
        }
        told
    }

    #[tokio::test]
    async fn the_first_list_corrects_a_snapshot_and_the_next_start_knows_it() {
        let folder = tempfile::tempdir().unwrap();
        let known = [map("same", "u1", 7), map("gone", "u2", 8), map("other", "u3", 9)].join(",");
        let file = folder.path().join("configmaps.core.json");
        std::fs::write(&file, format!(r#"{{"items":[{known}]}}"#)).unwrap();
        let (list, api) = watch::channel(None);
        let tasks = TaskGroup::new();
        let informers = Informers::new(&tasks, Client::new(Arc::new(Api(api)), "test")).with_snapshots(folder.path());
        let informer = informers.of::<ConfigMap>();
        let mut changes = informer.subscribe();
        assert_eq!(told(&mut changes, 4).await, ["+same", "+gone", "+other", "synced"]);
        assert_eq!((informer.is_synced(), informer.is_listed(), informer.revision()), (true, false, 0));
        // Another cluster counts its own revisions: the uid tells.
        let listed = [map("same", "u1", 7), map("other", "u4", 9), map("new", "u5", 3)].join(",");
        list.send_replace(Some(format!(r#"{{"metadata":{{"resourceVersion":"10"}},"items":[{listed}]}}"#)));
        assert_eq!(told(&mut changes, 4).await, ["-gone", "~other", "+new", "synced"]);
        informer.listed().await;
        assert!(tasks.shutdown(Duration::from_secs(5)).await, "what changed last is written at the end");
        let mut names: Vec<_> = load::<ConfigMap>(file).await.into_iter().map(|map| map.metadata.name.unwrap()).collect();
        names.sort();
        assert_eq!(names, ["new", "other", "same"]);
    }

    #[test]
    fn secrets_have_no_snapshot() {
        let folder = Path::new("/d");
        assert_eq!(path::<Secret>(folder, None), None);
        assert_eq!(path::<Secret>(folder, Some("x")), None);
        assert_eq!(path::<ConfigMap>(folder, Some("x")).unwrap(), Path::new("/d/configmaps.core.x.json"));
        assert_eq!(path::<EndpointSlice>(folder, None).unwrap(), Path::new("/d/endpointslices.discovery.k8s.io.json"));
    }

    #[tokio::test]
    async fn what_is_broken_hides_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        let count = async || load::<ConfigMap>(file.clone()).await.len();
        assert_eq!(count().await, 0);
        std::fs::write(&file, r#"{"items":[{"metadata":{"name":"a"}},{"metadata":7},{"metadata":{"name":"b"}}]}"#).unwrap();
        assert_eq!(count().await, 2);
        std::fs::write(&file, r#"{"items":[{"meta"#).unwrap();
        assert_eq!(count().await, 0);
    }
}
