//! Static pods: those of manifests in a folder of the node, which run without the API. What the kubelet's `config/file.go` and
//! `config/common.go` do: names end in the node's, the uid is a hash of the content, so that a changed file is another pod.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use inotify::{Inotify, WatchMask};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::api::{Kind, Object, names, yaml};
use crate::kinds::core::pod::POD;
use crate::rt::TaskGroup;

/// Hash of a static pod's content: its uid.
const HASH: &str = "kubernetes.io/config.hash";
/// Where a pod comes from: `file`.
const SOURCE: &str = "kubernetes.io/config.source";
const SEEN: &str = "kubernetes.io/config.seen";
/// On the pod in the API that stands for a static one: its hash.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Files that are read at most.
const MAX_FILES: usize = 512;
/// Bytes of a file at most.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Several changes in a row are read together.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the folder is looked at where the kernel tells nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether a pod comes from a file of the node, or stands for one.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, SOURCE).is_some_and(|source| source != "api")
}

/// Whether a pod in the API only stands for a static one.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, MIRROR).is_some()
}

/// Whether the mirror shows this static pod, and not what its file said before.
pub fn is_mirror_of(mirror: &Pod, pod: &Pod) -> bool {
    mirror.metadata.deletion_timestamp.is_none() && annotation(mirror, MIRROR) == annotation(pod, HASH)
}

/// The pod that stands for a static one in the API; the node owns it.
pub fn mirror_of(pod: &Pod, node: Option<&Node>) -> Pod {
    let mut mirror = Pod { status: None, ..pod.clone() };
    mirror.metadata.uid = None;
    let hash = annotation(pod, HASH).unwrap_or("").to_owned();
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
    mirror.metadata.owner_references = node.map(|node| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: text(&node.metadata.name),
            uid: text(&node.metadata.uid),
            controller: Some(true),
            block_owner_deletion: None,
        }]
    });
    mirror
}

/// Reads the manifest of a static pod.
///
/// # Errors
/// What is wrong with it.
pub fn decode(bytes: &[u8], path: &Path, node: &str, now: Timestamp) -> Result<Pod, String> {
    let value = yaml::to_value(bytes)?.value;
    let mut object: Object = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if (object.api_version(), object.kind()) != ("v1", "Pod") {
        return Err(format!("expected a Pod of v1, got a {} of {:?}", object.kind(), object.api_version()));
    }
    POD.default(&mut object);
    let name = format!("{}-{}", object.name(), node.to_lowercase());
    let namespace = if object.namespace().is_empty() { "default".to_owned() } else { object.namespace().to_owned() };
    let hash = hash(&object, node, path);
    object.set(&["metadata", "name"], name.as_str());
    object.set(&["metadata", "namespace"], namespace);
    object.set(&["spec", "nodeName"], node);
    let mut errors: Vec<String> =
        names::dns1123_subdomain(&name).into_iter().map(|why| format!("metadata.name: {why}")).collect();
    errors.extend(POD.validate(&object).iter().map(ToString::to_string));
    if !errors.is_empty() {
        return Err(errors.join("; "));
    }
    object.remove(&["status"]);
    let mut pod: Pod = object.typed().map_err(|error| error.to_string())?;
    if pod.metadata.uid.as_deref().unwrap_or("").is_empty() {
        pod.metadata.uid = Some(hash.clone());
    }
    let annotations = pod.metadata.annotations.get_or_insert_default();
    let own = [(HASH, hash), (SOURCE, "file".to_owned()), (SEEN, now.to_string())];
    annotations.extend(own.map(|(key, value)| (key.to_owned(), value)));
    // It runs whatever happens to the node.
    let everything =
        Toleration { operator: Some("Exists".to_owned()), effect: Some("NoExecute".to_owned()), ..Toleration::default() };
    pod.spec.get_or_insert_default().tolerations.get_or_insert_default().push(everything);
    Ok(pod)
}

/// 32 hexadecimal digits, as upstream's.
fn hash(object: &Object, node: &str, path: &Path) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&object.to_json());
    context.update(format!("host:{node}file:{}", path.display()).as_bytes());
    context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The folder, and what was last read of it.
pub struct Folder {
    path: PathBuf,
    node: String,
    known: BTreeMap<PathBuf, (Vec<u8>, Result<Arc<Pod>, String>)>,
}

impl Folder {
    /// A folder that was not read yet; it is made if it is missing.
    pub fn new(path: PathBuf, node: String) -> Self {
        Self { path, node, known: BTreeMap::new() }
    }

    /// Something may have changed in the folder.
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + use<> {
        let path = self.path.clone();
        futures_util::stream::unfold(None, move |mut events| {
            let path = path.clone();
            async move {
                if events.is_none() {
                    events = watch(&path).inspect_err(|error| tracing::debug!(%error, "static pods are not watched")).ok();
                }
                let told = match &mut events {
                    Some(stream) => tokio::time::timeout(Duration::MAX, stream.next()).await.ok().flatten(),
                    None => {
                        tokio::time::sleep(LOOK_AGAIN).await;
                        return Some(((), None));
                    }
                };
                if !told.is_some_and(|event| event.is_ok_and(|event| !event.mask.contains(inotify::EventMask::IGNORED))) {
                    // The folder went away: it is watched anew.
                    events = None;
                }
                tokio::time::sleep(SETTLE).await;
                Some(((), events))
            }
        })
    }

    /// All pods of the folder. A file that cannot be read any more leaves the pod that it last described.
    pub async fn read(&mut self, now: Timestamp) -> Vec<Arc<Pod>> {
        let path = self.path.clone();
        let files = match TaskGroup::blocking(move || files(&path)).await {
            Ok(Ok(files)) => files,
            Ok(Err(error)) => {
                tracing::warn!(path = %self.path.display(), %error, "static pods: the folder cannot be read");
                return self.pods();
            }
            Err(_) => return self.pods(),
        };
        self.known.retain(|path, _| files.contains_key(path));
        for (path, bytes) in files {
            let before = self.known.remove(&path);
            let entry = match before {
                Some((known, decoded)) if known == bytes => (known, decoded),
                before => {
                    let decoded = decode(&bytes, &path, &self.node, now).map(Arc::new);
                    if let Err(why) = &decoded {
                        tracing::warn!(path = %path.display(), why, "static pod: the manifest is wrong");
                    }
                    let last_good = before.and_then(|(_, decoded)| decoded.ok());
                    (bytes, decoded.or_else(|why| last_good.ok_or(why)))
                }
            };
            self.known.insert(path, entry);
        }
        self.pods()
    }

    /// Of two files that name the same pod, the first wins.
    fn pods(&self) -> Vec<Arc<Pod>> {
        let mut seen = std::collections::BTreeSet::new();
        let pods = self.known.values().filter_map(|(_, decoded)| decoded.as_ref().ok());
        pods.filter(|pod| seen.insert(key(pod))).cloned().collect()
    }
}

/// Namespace and name.
pub fn key(pod: &Pod) -> (String, String) {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

fn watch(folder: &Path) -> std::io::Result<inotify::EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::DELETE
        | WatchMask::CREATE
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    inotify.watches().add(folder, mask)?;
    inotify.into_event_stream([0; 1024])
}

fn files(folder: &Path) -> std::io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    use std::io::Read;
    std::fs::create_dir_all(folder)?;
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder)?.take(MAX_FILES) {
        let path = entry?.path();
        let is_hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
        if is_hidden || !path.is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        // A file that vanishes meanwhile is no file of the folder any more.
        if let Ok(file) = std::fs::File::open(&path)
            && file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).is_ok()
        {
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str =
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: nginx:1.14\n";

    fn read(text: &str) -> Result<Pod, String> {
        decode(text.as_bytes(), Path::new("/m/web.yaml"), "n1", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn manifests_become_pods_of_the_node() {
        let pod = read(WEB).unwrap();
        assert_eq!(key(&pod), ("default".to_owned(), "web-n1".to_owned()));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.restart_policy.as_deref()), (Some("n1"), Some("Always")));
        assert!(is_static(&pod) && !is_mirror(&pod));
        assert_eq!(pod.metadata.uid.as_ref().unwrap().len(), 32);
        assert_eq!(pod.metadata.uid, read(WEB).unwrap().metadata.uid, "the same content is the same pod");
        assert_ne!(pod.metadata.uid, read(&WEB.replace("1.14", "1.15")).unwrap().metadata.uid);
        let mirror = mirror_of(&pod, None);
        assert!(is_mirror(&mirror) && is_mirror_of(&mirror, &pod) && mirror.metadata.uid.is_none());
        for wrong in
            ["", "kind: Service\napiVersion: v1\n", "kind: Pod\napiVersion: v1\nmetadata: {name: a}\nspec: {containers: []}\n"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_file_that_breaks_keeps_its_pod() {
        let directory = tempfile::tempdir().unwrap();
        let mut folder = Folder::new(directory.path().join("static"), "n1".to_owned());
        assert!(folder.read(Timestamp::UNIX_EPOCH).await.is_empty());
        let file = directory.path().join("static/web.yaml");
        let mut changes = std::pin::pin!(folder.changes());
        let told = tokio::spawn({
            let file = file.clone();
            async move { tokio::fs::write(file, WEB).await }
        });
        tokio::time::timeout(Duration::from_secs(5), changes.next()).await.unwrap().unwrap();
        told.await.unwrap().unwrap();
        assert_eq!(folder.read(Timestamp::UNIX_EPOCH).await.len(), 1);
        std::fs::write(&file, "kind: Po").unwrap();
        assert_eq!(folder.read(Timestamp::UNIX_EPOCH).await.len(), 1);
        std::fs::remove_file(&file).unwrap();
        assert!(folder.read(Timestamp::UNIX_EPOCH).await.is_empty());
    }
}
