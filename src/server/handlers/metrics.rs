//! `metrics.k8s.io`: asks the nodes what they and their pods use, when somebody asks. It takes the place of metrics-server; the
//! figures are those of the kubelets' `/stats/summary`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use futures_util::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::super::{RequestContext, Server, node};
use super::render::Renderer;
use super::{body, options};
use crate::api::status::GroupResource;
use crate::api::{ApiError, Kind, Object};
use crate::http::{HttpRequest, HttpResponse, empty};
use crate::kinds::{core, metrics};
use crate::registry::ListOptions;

const SUMMARY: &str = "/stats/summary?only_cpu_and_memory=true";
/// Time for a node to answer; one that does not is left out.
const ANSWER: Duration = Duration::from_secs(10);
/// Nodes asked at one time.
const AT_ONCE: usize = 32;
/// Longest answer of a node.
const SUMMARY_BYTES: usize = 16 << 20;

/// Serves get and list of a kind of the group.
///
/// # Errors
/// 404 for a node or pod that does not exist or of which nothing is known yet.
pub async fn serve(
    server: &Arc<Server>,
    context: &RequestContext,
    kind: Arc<dyn Kind>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let renderer = Renderer::new(&server.registry, Arc::clone(&kind), context, request.headers())?;
    let options = options::list(context)?;
    let objects = if kind.names().plural == metrics::NODE_METRICS.names().plural {
        nodes(server, &options).await?
    } else {
        pods(server, &context.info.namespace, &options).await?
    };
    if context.info.verb == "list" {
        return renderer.objects(json!({}), objects.into_iter().map(Ok));
    }
    let of = GroupResource { group: metrics::GROUP, resource: kind.names().plural };
    let object = objects.into_iter().next().ok_or_else(|| ApiError::not_found(&of, &context.info.name))?;
    renderer.object(object, StatusCode::OK, &[])
}

async fn nodes(server: &Arc<Server>, options: &ListOptions) -> Result<Vec<Object>, ApiError> {
    let found = typed::<Node>(server, &core::node::NODE, "", options)?;
    let names: BTreeSet<String> = found.iter().filter_map(|node| node.metadata.name.clone()).collect();
    let summaries = summaries(server, names).await;
    let object = |node: &Node| {
        let summary = summaries.get(node.metadata.name.as_deref()?)?;
        let of = summary.value.get("node")?;
        let metadata = json!({"name": node.metadata.name, "labels": node.metadata.labels, "creationTimestamp": at(of)?});
        made(
            &metrics::NODE_METRICS,
            json!({"metadata": metadata, "timestamp": at(of)?, "window": summary.window, "usage": usage(of)?}),
        )
    };
    Ok(found.iter().filter_map(object).collect())
}

async fn pods(server: &Arc<Server>, namespace: &str, options: &ListOptions) -> Result<Vec<Object>, ApiError> {
    let found = typed::<Pod>(server, &core::pod::POD, namespace, options)?;
    let names: BTreeSet<String> = found.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    let summaries = summaries(server, names).await;
    let mut by_uid: BTreeMap<&str, (&Value, &Summary)> = BTreeMap::new();
    for summary in summaries.values() {
        for pod in summary.value.get("pods").and_then(Value::as_array).into_iter().flatten() {
            if let Some(uid) = pod.pointer("/podRef/uid").and_then(Value::as_str) {
                by_uid.insert(uid, (pod, summary));
            }
        }
    }
    let object = |pod: &Pod| {
        let (of, summary) = by_uid.get(pod.metadata.uid.as_deref()?)?;
        let containers = of.get("containers")?.as_array()?.iter();
        let containers: Option<Vec<Value>> =
            containers.map(|one| Some(json!({"name": one.get("name")?, "usage": usage(one)?}))).collect();
        let containers = containers.filter(|containers| !containers.is_empty())?;
        let meta = &pod.metadata;
        let metadata =
            json!({"name": meta.name, "namespace": meta.namespace, "labels": meta.labels, "creationTimestamp": at(of)?});
        made(
            &metrics::POD_METRICS,
            json!({"metadata": metadata, "timestamp": at(of)?, "window": summary.window, "containers": containers}),
        )
    };
    Ok(found.iter().filter_map(object).collect())
}

fn made(kind: &dyn Kind, mut value: Value) -> Option<Object> {
    value["apiVersion"] = json!(kind.names().api_version());
    value["kind"] = json!(kind.names().kind);
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    if let Value::Object(map) = value { Some(Object(map)) } else { None }
}

fn typed<K: serde::de::DeserializeOwned>(
    server: &Server,
    kind: &dyn Kind,
    namespace: &str,
    options: &ListOptions,
) -> Result<Vec<K>, ApiError> {
    let listing = server.registry.list(kind, namespace, options)?;
    listing.entries.iter().map(|entry| server.registry.decode(kind, entry)?.typed()).collect()
}

/// What a node said.
struct Summary {
    value: Value,
    /// What its rates are measured over, as a Go duration.
    window: String,
}

/// The summaries of nodes, by name; a node that does not answer is left out.
async fn summaries(server: &Arc<Server>, names: BTreeSet<String>) -> BTreeMap<String, Summary> {
    let ask = |name: String| async move {
        let answer = tokio::time::timeout(ANSWER, summary(server, &name)).await;
        let answer = answer.unwrap_or_else(|_| Err(ApiError::internal(format!("no answer within {} s", ANSWER.as_secs()))));
        answer
            .map_err(|error| tracing::debug!(node = name, %error, "the node does not say what it uses"))
            .ok()
            .map(|summary| (name, summary))
    };
    stream::iter(names).map(ask).buffer_unordered(AT_ONCE).filter_map(|answer| async { answer }).collect().await
}

async fn summary(server: &Arc<Server>, name: &str) -> Result<Summary, ApiError> {
    let response = node::proxy(server, name, SUMMARY, HttpRequest::new(empty())).await?;
    if response.status() != StatusCode::OK {
        return Err(ApiError::internal(format!("the kubelet answers {}", response.status())));
    }
    let window =
        response.headers().get("x-orch-window-ms").and_then(|value| value.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
    let bytes = body::collect(response.into_body(), SUMMARY_BYTES).await?;
    let value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
    Ok(Summary { value, window: format!("{}.{:03}s", window / 1_000, window % 1_000) })
}

fn at(of: &Value) -> Option<&Value> {
    of.pointer("/cpu/time")
}

fn usage(of: &Value) -> Option<Value> {
    let cpu = of.pointer("/cpu/usageNanoCores")?.as_u64()?;
    let memory = of.pointer("/memory/workingSetBytes")?.as_u64()?;
    Some(json!({"cpu": format!("{cpu}n"), "memory": format!("{}Ki", memory >> 10)}))
}
