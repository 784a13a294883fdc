//! Port-forward: each connection is dialled on the loopback interface of the pod.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::query::Query;
use super::{KubeletServer, lookup_error, upgrade_error};
use crate::agent::pods::LookupError;
use crate::api::ApiError;
use crate::cri::{Runtime, RuntimeError, State, labels};
use crate::http::streams::{self, Forwarded};
use crate::http::{HttpRequest, HttpResponse};
use crate::network;

/// Value of the label [`labels::TYPE`] on sandboxes.
const SANDBOX: &str = "podsandbox";

impl KubeletServer {
    pub(super) fn port_forward(
        &self,
        request: &mut HttpRequest,
        namespace: &str,
        pod: &str,
        query: &Query,
    ) -> Result<HttpResponse, ApiError> {
        let no_pod = || lookup_error(LookupError::NoPod { namespace: namespace.to_owned(), pod: pod.to_owned() });
        let found = self.pods.pod(namespace, pod).ok_or_else(no_pod)?;
        let uid = found.metadata.uid.clone().unwrap_or_default();
        let listed = query.all("port").chain(query.all("ports")).flat_map(|ports| ports.split(','));
        let ports: Result<Vec<u16>, _> = listed.map(str::parse).collect();
        let ports = ports.map_err(|_| ApiError::bad_request("port must be an integer between 1 and 65535"))?;
        let (runtime, name) = (Arc::clone(&self.runtime), format!("{pod}_{namespace}"));
        streams::port_forward(request, &ports, &self.tasks, move |forwarded| {
            let (runtime, name, uid) = (Arc::clone(&runtime), name.clone(), uid.clone());
            async move { forward(forwarded, &*runtime, &name, &uid).await }
        })
        .map_err(upgrade_error)
    }
}

async fn forward(forwarded: Forwarded, runtime: &dyn Runtime, pod: &str, uid: &str) {
    let Forwarded { port, mut input, output, error } = forwarded;
    let dialled = match sandbox_pid(runtime, uid).await {
        Ok(pid) => network::connect(pid, port).await.map_err(|why| why.to_string()),
        Err(why) => Err(why.to_string()),
    };
    let mut connection = match dialled {
        Ok(connection) => connection,
        Err(why) => {
            let words = format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}");
            if error.write(words).await.is_err() {
                tracing::debug!(pod, port, "the client has gone");
            }
            error.end().await;
            return output.end().await;
        }
    };
    let (mut reader, mut writer) = connection.split();
    let inward = async {
        let copied = input.copy_to(&mut writer).await;
        // The other end may have closed already.
        drop(writer.shutdown().await);
        copied
    };
    // What the pod sends decides: when it has closed, nobody listens to what still comes.
    let result = tokio::select! {
        result = output.copy_from(&mut reader) => result,
        Err(broken) = inward => Err(broken),
    };
    if let Err(broken) = result {
        tracing::debug!(pod, port, error = %broken, "a forwarded connection broke");
    }
    output.end().await;
    error.end().await;
}

/// The pause process of a pod.
async fn sandbox_pid(runtime: &dyn Runtime, pod_uid: &str) -> Result<u32, RuntimeError> {
    let is_sandbox = |labels: &std::collections::BTreeMap<String, String>| {
        labels.get(labels::POD_UID).is_some_and(|uid| uid == pod_uid)
            && labels.get(labels::TYPE).is_some_and(|kind| kind == SANDBOX)
    };
    let gone = || RuntimeError::NotFound("the pod has no running sandbox".to_owned());
    let containers = runtime.list().await?;
    let running = |state| state == State::Running;
    let sandbox =
        containers.iter().find(|container| running(container.state) && is_sandbox(&container.labels)).ok_or_else(gone)?;
    runtime.inspect(&sandbox.id).await?.pid.ok_or_else(gone)
}
