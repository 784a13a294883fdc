//! Removes images that nobody uses when the engine's disk fills: above the high threshold down to the low one, the longest unused
//! first. It follows upstream's `pkg/kubelet/images/image_gc_manager.go`, but removes only what this node pulled (see [`ledger`]
//! (super::ledger)): the engine is the user's own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::ledger::Ledger;
use crate::agent::pods::Pods;
use crate::agent::stats::filesystem::Space;
use crate::cri::{Runtime, RuntimeError};
use crate::rt::clock::SharedClock;

/// When to remove images; parts of a hundred of the engine's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Above it images are removed; 100 never.
    pub high_percent: u64,
    /// Down to it.
    pub low_percent: u64,
    /// An image rests this long before it may go.
    pub minimum_age: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, minimum_age: Duration::from_secs(120) }
    }
}

/// How many bytes must go; 0 below the high threshold.
fn excess(space: Space, thresholds: Thresholds) -> u64 {
    if space.capacity_bytes == 0 {
        return 0;
    }
    let used = space.capacity_bytes.saturating_sub(space.available_bytes);
    let part = |percent: u64| u64::try_from(u128::from(space.capacity_bytes) * u128::from(percent) / 100).unwrap_or(u64::MAX);
    if used < part(thresholds.high_percent) || thresholds.high_percent >= 100 {
        0
    } else {
        used - part(thresholds.low_percent).min(used)
    }
}

/// The collector of a node.
pub struct Collector {
    runtime: Arc<dyn Runtime>,
    ledger: Arc<Ledger>,
    pods: Arc<Pods>,
    clock: SharedClock,
    thresholds: Thresholds,
}

impl Collector {
    /// A collector of what is in the ledger.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        ledger: Arc<Ledger>,
        pods: Arc<Pods>,
        clock: SharedClock,
        thresholds: Thresholds,
    ) -> Self {
        Self { runtime, ledger, pods, clock, thresholds }
    }

    /// Looks at the disk that holds `root` and removes what is too much.
    ///
    /// # Errors
    /// How much could not be freed, in upstream's words; they belong into an Event.
    pub async fn collect(&self, root: &Path) -> Result<u64, String> {
        let space = Space::of(root);
        let wanted = excess(space, self.thresholds);
        if wanted == 0 {
            return Ok(0);
        }
        tracing::info!(wanted_bytes = wanted, root = %root.display(), "the disk of images is over its threshold");
        let freed = self.free(wanted, self.clock.now() - self.thresholds.minimum_age).await;
        if freed < wanted {
            return Err(format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
            ));
        }
        Ok(freed)
    }

    /// Removes all images that nobody uses, the youngest excepted: the node runs short of disk.
    pub async fn free_unused(&self) -> u64 {
        self.free(u64::MAX, self.clock.now() - self.thresholds.minimum_age).await
    }

    /// Removes images that were last used before `before`, until this many bytes are free or there is nothing left to remove.
    /// Returns what was freed.
    pub async fn free(&self, wanted: u64, before: Timestamp) -> u64 {
        let now = self.clock.now();
        let in_use = images_of(&self.pods.list());
        self.ledger.used(in_use.iter().cloned(), now);
        let mut freed = 0;
        for image in self.ledger.unused_since(before) {
            if freed >= wanted {
                break;
            }
            match self.remove(&image).await {
                Ok(bytes) => {
                    tracing::info!(image, bytes, "removed an unused image");
                    freed += bytes;
                    self.ledger.removed(&image);
                }
                // A container of somebody else uses it.
                Err(RuntimeError::Conflict(why)) => tracing::debug!(image, why, "the image stays"),
                Err(error) => tracing::warn!(image, %error, "cannot remove an unused image"),
            }
        }
        freed
    }

    async fn remove(&self, image: &str) -> Result<u64, RuntimeError> {
        let Some(found) = self.runtime.image(image).await? else { return Ok(0) };
        self.runtime.remove_image(image).await?;
        // It may have other names, and then only this one is gone.
        Ok(if self.runtime.image(&found.id).await?.is_some() { 0 } else { found.size_bytes })
    }
}

fn images_of(pods: &[Arc<Pod>]) -> Vec<String> {
    let specs = pods.iter().filter_map(|pod| pod.spec.as_ref());
    let images = specs.flat_map(|spec| {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|one| one.image.clone());
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|one| one.image.clone());
        let volumes = spec.volumes.iter().flatten().map(|volume| volume.image.as_ref().and_then(|image| image.reference.clone()));
        containers.chain(ephemeral).chain(volumes).collect::<Vec<_>>()
    });
    images.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::fake::Fake;
    use crate::rt::clock::{Clock, FakeClock};

    #[test]
    fn only_what_is_over_the_high_threshold_counts() {
        let space = |available_bytes| Space { capacity_bytes: 1_000, available_bytes, ..Space::default() };
        let thresholds = Thresholds::default();
        assert_eq!([300, 151, 150, 0].map(|free| excess(space(free), thresholds)), [0, 0, 50, 200]);
        assert_eq!(excess(space(0), Thresholds { high_percent: 100, ..thresholds }), 0);
        assert_eq!(excess(Space::default(), thresholds), 0);
    }

    #[tokio::test]
    async fn removes_the_longest_unused_of_its_own() {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let runtime = Fake::new(Arc::clone(&clock) as _);
        for name in ["old", "new", "theirs"] {
            runtime.add_image(name);
        }
        let folder = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(folder.path().join("images.json")));
        ledger.pulled("old", clock.now());
        clock.advance(Duration::from_secs(10));
        ledger.pulled("new", clock.now());
        let collector = Collector::new(
            Arc::clone(&runtime) as _,
            Arc::clone(&ledger),
            Arc::default(),
            Arc::clone(&clock) as _,
            Thresholds::default(),
        );
        let rested = || clock.now() - Thresholds::default().minimum_age;
        assert_eq!(collector.free(1, rested()).await, 0, "too young");
        clock.advance(Duration::from_secs(300));
        assert_eq!(collector.free(1, rested()).await, 1 << 20);
        assert!(runtime.image("old").await.unwrap().is_none() && runtime.image("new").await.unwrap().is_some());
        assert_eq!(collector.free(u64::MAX, rested()).await, 1 << 20);
        assert!(runtime.image("theirs").await.unwrap().is_some(), "not ours to remove");
    }
}
