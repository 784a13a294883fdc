//! The mirror pod: how a static pod is seen in the API. It is made, kept like its file, and made again when somebody deletes it; it
//! gets the static pod's status. Follows the kubelet's `mirror_client` and `tryReconcileMirrorPods`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::statics;
use super::worker::{Done, Worker};
use crate::client::{ClientError, DeleteOptions, Preconditions};

impl Worker {
    /// Takes in what the API has under the static pod's name.
    pub(super) fn take_mirror(&mut self, mirror: Option<Arc<Pod>>) {
        self.mirror = mirror;
        if let Some(mirror) = self.mirror.as_ref().filter(|mirror| statics::is_mirror_of(mirror, &self.pod)) {
            self.pod = Arc::new(Pod { status: mirror.status.clone(), ..(*self.pod).clone() });
            self.take_allocation();
        }
    }

    /// Sees to it that the mirror is there; whether its status can be written now.
    pub(super) fn has_mirror(&mut self) -> bool {
        let client = self.context.client.clone();
        let (namespace, name) = statics::key(&self.pod);
        match &self.mirror {
            Some(mirror) if statics::is_mirror_of(mirror, &self.pod) => return true,
            Some(stale) => {
                let preconditions = Some(Preconditions { uid: stale.metadata.uid.clone(), resource_version: None });
                let options = DeleteOptions { grace_period_seconds: Some(0), preconditions, ..DeleteOptions::default() };
                self.operations.push(Box::pin(async move {
                    let deleted = client.delete::<Pod>(&namespace, &name, &options).await;
                    Done::Mirror(deleted.map(|()| None))
                }));
            }
            None => {
                let mirror = statics::mirror_of(&self.pod, self.context.node().as_deref());
                self.operations.push(Box::pin(async move { Done::Mirror(client.create(&mirror).await.map(Some)) }));
            }
        }
        self.is_patching = true;
        false
    }

    /// Notes how the making or the deletion of the mirror ended.
    pub(super) fn note_mirror(&mut self, result: Result<Option<Pod>, ClientError>) {
        self.is_patching = false;
        match result {
            Ok(mirror) => {
                self.patch_retry.1.reset();
                self.patch_retry.0 = None;
                self.take_mirror(mirror.map(Arc::new));
            }
            Err(error) if error.is_not_found() => self.take_mirror(None),
            Err(error) => self.note_api_failure(&error),
        }
    }
}
