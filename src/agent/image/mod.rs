//! Images of containers: looked up or pulled by their policy, with the pod's credentials, one pull of an image at a time, and
//! with a back-off after a failure. The events and their words are those of the kubelet's `image_manager`.
//!
//! Where to pull from beside the registry itself is in [`registries`], what was pulled in [`ledger`]; [`collect`] removes what
//! nobody uses, and [`preload`] loads what lies in a folder.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Semaphore;

use self::ledger::Ledger;
use self::registries::Registries;
use super::pod::context::{EventSink, reference};
use crate::cri::{Image, PullProgress, Pulled, RegistryAuth, Runtime};
use crate::rt::backoff::exponential;
use crate::rt::clock::{SharedClock, instant};
use crate::rt::gates::Gates;

pub mod collect;
pub mod ledger;
pub mod preload;
pub mod registries;

const BACKOFF_BASE: Duration = Duration::from_secs(10);
const BACKOFF_CAP: Duration = Duration::from_secs(300);
/// Pulls at one time from one registry; each already loads several layers. One that hangs holds up none but its own.
const PARALLEL_PULLS: usize = 5;
/// After how long a pull that is still under way is told of; then after twice as long, and so on.
const FIRST_NEWS: Duration = Duration::from_secs(10);

/// Why a container's image is not there; reason and message go into its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFailure {
    pub reason: &'static str,
    pub message: String,
    /// How long to wait before the next try.
    pub retry_after: Duration,
}

#[derive(Debug, Clone)]
struct Failed {
    failures: u32,
    until: Timestamp,
    message: String,
}

/// Looks up and pulls images.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    clock: SharedClock,
    events: Arc<dyn EventSink>,
    registries: Registries,
    ledger: Arc<Ledger>,
    pulls: Mutex<HashMap<String, Arc<Semaphore>>>,
    /// A second pull of an image waits for the first and then finds it.
    turns: Gates,
    failed: Mutex<HashMap<(String, String), Failed>>,
}

impl Images {
    /// An image manager over a runtime.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        clock: SharedClock,
        events: Arc<dyn EventSink>,
        registries: Registries,
        ledger: Arc<Ledger>,
    ) -> Self {
        let (pulls, turns, failed) = (Mutex::default(), Gates::default(), Mutex::default());
        Self { runtime, clock, events, registries, ledger, pulls, turns, failed }
    }

    /// Makes sure that the image of a container is there.
    ///
    /// # Errors
    /// [`ImageFailure`] with the waiting reason: `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`, `ImageInspectError`.
    pub async fn ensure(&self, pod: &Pod, container: &Container, auths: &[RegistryAuth]) -> Result<Image, ImageFailure> {
        let reference_text = container.image.clone().unwrap_or_default();
        let event = |is_warning, reason: &str, message: &str| {
            self.events.event(&reference(pod, Some(&container.name)), is_warning, reason, message);
        };
        let policy = container.image_pull_policy.as_deref().unwrap_or_else(|| default_policy(&reference_text));
        let key = (pod.metadata.uid.clone().unwrap_or_default(), reference_text.clone());
        if policy != "Always" {
            let found = self.runtime.image(&reference_text).await;
            let found = found.map_err(|error| inspect_error(&reference_text, &error.to_string()))?;
            if let Some(image) = found {
                event(false, "Pulled", &format!("Container image \"{reference_text}\" already present on machine"));
                self.failed.lock().remove(&key);
                return Ok(image);
            }
        }
        if policy == "Never" {
            let message = format!("Container image \"{reference_text}\" is not present with pull policy of Never");
            event(true, "ErrImageNeverPull", &message);
            return Err(ImageFailure { reason: "ErrImageNeverPull", message, retry_after: BACKOFF_BASE });
        }
        if let Some(failure) = self.backing_off(&key) {
            event(false, "BackOff", &format!("Back-off pulling image \"{reference_text}\""));
            return Err(failure);
        }
        event(false, "Pulling", &format!("Pulling image \"{reference_text}\""));
        let pulled = Mutex::new(Pulled::default());
        let progress = |news| *pulled.lock() = news;
        let pull = self.pull(&reference_text, policy, auths, &progress);
        let say = || event(false, "Pulling", &format!("Pulling image \"{reference_text}\": {}", progress_words(*pulled.lock())));
        match with_news(pull, say).await {
            Ok((image, took, waited)) => {
                self.failed.lock().remove(&key);
                let (took, waited, size) = (go_duration(took), go_duration(waited), image.size_bytes);
                event(
                    false,
                    "Pulled",
                    &format!(
                        "Successfully pulled image \"{reference_text}\" in {took} ({waited} including waiting). \
                         Image size: {size} bytes."
                    ),
                );
                Ok(image)
            }
            Err(why) => {
                event(true, "Failed", &format!("Failed to pull image \"{reference_text}\": {why}"));
                event(true, "Failed", "Error: ErrImagePull");
                Err(self.note_failure(key, why))
            }
        }
    }

    fn backing_off(&self, key: &(String, String)) -> Option<ImageFailure> {
        let failed = self.failed.lock();
        let known = failed.get(key)?;
        let left = Duration::try_from(known.until.duration_since(self.clock.now())).ok();
        // What is farther away than any back-off comes from before the clock was set back.
        let left = left.filter(|left| !left.is_zero() && *left <= BACKOFF_CAP)?;
        let message = format!("Back-off pulling image \"{}\": ErrImagePull: {}", key.1, known.message);
        Some(ImageFailure { reason: "ImagePullBackOff", message, retry_after: left })
    }

    fn note_failure(&self, key: (String, String), why: String) -> ImageFailure {
        let mut failed = self.failed.lock();
        let failures = failed.get(&key).map_or(0, |known| known.failures);
        let delay = exponential(BACKOFF_BASE, BACKOFF_CAP, failures);
        let until = self.clock.now() + delay;
        failed.insert(key, Failed { failures: failures + 1, until, message: why.clone() });
        // The next look, soon, finds the back-off and says so.
        ImageFailure { reason: "ErrImagePull", message: why, retry_after: Duration::from_secs(1).min(delay) }
    }

    async fn look(&self, image: &str) -> Result<Option<Image>, String> {
        self.runtime.image(image).await.map_err(|error| error.to_string())
    }

    async fn pull(
        &self,
        image: &str,
        policy: &str,
        auths: &[RegistryAuth],
        progress: PullProgress<'_>,
    ) -> Result<(Image, Duration, Duration), String> {
        let asked_at = instant();
        let _turn = self.turns.enter(image).await;
        let pulls = self.pulls_from(registry_of(image));
        let _permit = pulls.acquire().await.map_err(|error| error.to_string())?;
        let began_at = instant();
        if policy != "Always"
            && let Some(found) = self.look(image).await?
        {
            return Ok((found, began_at.elapsed(), asked_at.elapsed()));
        }
        let was_there = self.look(image).await?.is_some();
        self.pull_from_any(image, auths, progress).await?;
        if !was_there {
            self.ledger.pulled(image, self.clock.now());
        }
        let found = self.look(image).await?.ok_or_else(|| format!("image \"{image}\" is not there after it was pulled"))?;
        Ok((found, began_at.elapsed(), asked_at.elapsed()))
    }
}

impl Images {
    fn pulls_from(&self, registry: &str) -> Arc<Semaphore> {
        let mut pulls = self.pulls.lock();
        // Who pulls or waits to holds its registry's; the others are not needed.
        pulls.retain(|_, turns| Arc::strong_count(turns) > 1);
        Arc::clone(pulls.entry(registry.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PARALLEL_PULLS))))
    }

    /// Pulls by the names of the mirrors and by the image's own; the words of the last failure are the image's own registry's.
    async fn pull_from_any(&self, image: &str, auths: &[RegistryAuth], progress: PullProgress<'_>) -> Result<(), String> {
        let mut result = Ok(());
        for source in self.registries.sources(image) {
            result = self.pull_from(&source, auths, progress).await;
            match &result {
                Ok(()) if source == image => {}
                Ok(()) => {
                    let renamed = async {
                        self.runtime.tag(&source, image).await?;
                        self.runtime.remove_image(&source).await
                    };
                    result = renamed.await.map_err(|error| error.to_string());
                }
                Err(why) => tracing::debug!(image, source, why, "not pulled from here"),
            }
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Pulls by one name, with each of the credentials that fit its registry.
    async fn pull_from(&self, source: &str, auths: &[RegistryAuth], progress: PullProgress<'_>) -> Result<(), String> {
        let own = self.registries.login(source);
        let fitting = auths.iter().filter(|auth| fits(auth, source)).chain(&own);
        let mut tries: Vec<Option<&RegistryAuth>> = fitting.map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let mut result = Ok(());
        for auth in tries {
            let pulled = self.runtime.pull(source, auth, progress).await;
            result = pulled.map_err(|error| error.to_string());
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// Waits for a pull, and has said now and then, ever more rarely, that it is still under way.
async fn with_news<T>(pull: impl Future<Output = T>, say: impl Fn()) -> T {
    let mut pull = std::pin::pin!(pull);
    let mut pause = FIRST_NEWS;
    loop {
        match tokio::time::timeout(pause, &mut pull).await {
            Ok(done) => return done,
            Err(_) => say(),
        }
        pause *= 2;
    }
}

/// `1 of 3 layers, 12.5 MB of 40.0 MB`.
fn progress_words(pulled: Pulled) -> String {
    let mb = |bytes: u64| format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000);
    match pulled {
        Pulled { layers: 0, .. } => "no answer from the registry yet, or another pull comes first".to_owned(),
        Pulled { layers, layers_done, bytes, total_bytes } => {
            format!("{layers_done} of {layers} layers, {} of {}", mb(bytes), mb(total_bytes))
        }
    }
}

fn inspect_error(image: &str, why: &str) -> ImageFailure {
    let message = format!("Failed to inspect image \"{image}\": {why}");
    ImageFailure { reason: "ImageInspectError", message, retry_after: Duration::from_secs(2) }
}

/// The policy of a container that names none: as the API server defaults it.
fn default_policy(image: &str) -> &'static str {
    let (_, tag) = image.rsplit('/').next().and_then(|last| last.split_once(':')).unwrap_or((image, "latest"));
    if tag == "latest" && !image.contains('@') { "Always" } else { "IfNotPresent" }
}

/// A duration as Go prints it, to the millisecond.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1_000 { format!("{millis}ms") } else { format!("{}.{:03}s", millis / 1_000, millis % 1_000) }
}

/// The registry (and path) that an image comes from.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn fits(auth: &RegistryAuth, image: &str) -> bool {
    let server = auth.server_address.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let path = path.trim_end_matches('/');
    let is_api_version = matches!(path, "" | "v1" | "v2");
    host == registry_of(image) && (is_api_version || image.starts_with(&format!("{host}/{path}")))
}

/// The credentials in a pull secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
pub fn credentials(secret: &Secret) -> Vec<RegistryAuth> {
    let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
    let auths = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(bytes), _) => parse(bytes).map(|config| config["auths"].clone()),
        (None, Some(bytes)) => parse(bytes),
        (None, None) => None,
    };
    let auths = auths.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    auths.iter().map(|(server, entry)| credential(server, entry)).collect()
}

fn credential(server: &str, entry: &Value) -> RegistryAuth {
    let text = |key: &str| entry[key].as_str().unwrap_or("").to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if let Some((user, pass)) = decode_pair(&text("auth")).filter(|_| username.is_empty()) {
        (username, password) = (user, pass);
    }
    RegistryAuth { username, password, server_address: server.to_owned(), identity_token: text("identitytoken") }
}

/// User and password of `user:password` in base64.
fn decode_pair(text: &str) -> Option<(String, String)> {
    let pair = STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
    pair.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn credentials_fit_their_registry() {
        let config = json!({"auths": {"r.example:5000": {"auth": STANDARD.encode("u:p:q")}}}).to_string();
        let secret: Secret = serde_json::from_value(json!({"data": {".dockerconfigjson": STANDARD.encode(config)}})).unwrap();
        let all = credentials(&secret);
        assert_eq!((all[0].username.as_str(), all[0].password.as_str()), ("u", "p:q"));
        let table = [("r.example:5000/a/b:1", true), ("r.example/a", false), ("nginx", false)];
        for (image, fitting) in table {
            assert_eq!(fits(&all[0], image), fitting, "{image}");
        }
        let hub = RegistryAuth { server_address: "https://index.docker.io/v1/".to_owned(), ..RegistryAuth::default() };
        assert!(fits(&hub, "nginx:1.14") && !fits(&hub, "quay.io/x/y"));
    }

    #[tokio::test(start_paused = true)]
    async fn long_pulls_are_told_of_ever_more_rarely() {
        let (said, begin) = (Mutex::new(Vec::new()), instant());
        let pull = tokio::time::sleep(Duration::from_secs(100));
        with_news(pull, || said.lock().push(begin.elapsed().as_secs())).await;
        assert_eq!(*said.lock(), [10, 30, 70]);
        let words = progress_words(Pulled { layers: 3, layers_done: 1, bytes: 12_540_000, total_bytes: 40_000_000 });
        assert_eq!(words, "1 of 3 layers, 12.5 MB of 40.0 MB");
    }

    #[test]
    fn policies_follow_the_tag() {
        let table = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("r:5000/nginx:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in table {
            assert_eq!(default_policy(image), policy, "{image}");
        }
    }
}
