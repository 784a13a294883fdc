//! The kubelet's HTTPS server (:10250): logs, exec, attach, port-forward, the pods of the node, health and metrics. The API
//! server is its client; paths and parameters are upstream's kubelet's.
//!
//! Who may ask is decided in [`authorize`].

use std::sync::Arc;

use ::http::{Method, Response, StatusCode, header};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::Agent;
use super::pods::{LookupError, Pods};
use super::stats::{NodeReading, Stats, exposition, summary};
use crate::api::ApiError;
use crate::api::status::{GroupResource, Reason};
use crate::cri::Runtime;
use crate::http::listener::Listener;
use crate::http::streams::UpgradeError;
use crate::http::{Handler, HttpRequest, HttpResponse, full};
use crate::rt::clock::SharedClock;
use crate::rt::{TaskGroup, metrics};

pub mod authorize;
mod command;
mod forward;
mod logs;
mod query;
mod tail;

use authorize::Access;
use query::Query;

/// Serves the pods of one node.
pub struct KubeletServer {
    pods: Arc<Pods>,
    stats: Arc<Stats>,
    access: Arc<Access>,
    runtime: Arc<dyn Runtime>,
    clock: SharedClock,
    tasks: TaskGroup,
}

impl KubeletServer {
    /// A server of an agent's pods and figures; streams run in `tasks`.
    pub fn new(
        agent: &Agent,
        access: Arc<Access>,
        runtime: Arc<dyn Runtime>,
        clock: SharedClock,
        tasks: &TaskGroup,
    ) -> Arc<Self> {
        Arc::new(Self { pods: agent.pods(), stats: agent.stats(), access, runtime, clock, tasks: tasks.clone() })
    }

    /// Serves until the tasks are cancelled. The listener's TLS must know the client CA.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        let tasks = self.tasks.clone();
        listener.serve(self, tasks).await;
    }

    async fn route(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        if let ["healthz" | "livez", ..] = parts[..] {
            return Ok(text("ok"));
        }
        let (asking, body) = request.into_parts();
        self.access.check(&asking).await?;
        let mut request = HttpRequest::from_parts(asking, body);
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        // Asked right after the agent's start, the answer waits until the pod is found again.
        if let ["containerLogs" | "exec" | "attach" | "portForward", namespace, pod, ..] = parts[..] {
            self.pods.settled(namespace, pod).await;
        }
        match parts[..] {
            ["containerLogs", namespace, pod, container] if is_read => self.logs(namespace, pod, container, &query).await,
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                self.exec(&mut request, namespace, pod, container, &query)
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                self.attach(&mut request, namespace, pod, container, &query)
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                self.port_forward(&mut request, namespace, pod, &query)
            }
            ["pods"] | ["runningpods" | "pods", ""] if is_read => Ok(json_response(StatusCode::OK, &self.pod_list())),
            ["metrics"] if is_read => metrics::render().map(text).map_err(ApiError::internal),
            ["metrics", "resource"] if is_read => self.counters(exposition::resource).await,
            ["metrics", "cadvisor"] if is_read => self.counters(exposition::cadvisor).await,
            ["stats", "summary"] if is_read => {
                let reading = self.stats.read().await.map_err(ApiError::internal)?;
                let mut response =
                    json_response(StatusCode::OK, &summary::summary(&reading, query.is_on(&["only_cpu_and_memory"])));
                let window = u64::try_from(reading.window.as_millis()).unwrap_or(u64::MAX);
                response.headers_mut().insert("x-orch-window-ms", window.into());
                Ok(response)
            }
            _ => Err(ApiError::no_such_path()),
        }
    }

    async fn counters(&self, form: fn(&NodeReading) -> String) -> Result<HttpResponse, ApiError> {
        self.stats.counters().await.map(|reading| text(form(&reading))).map_err(ApiError::internal)
    }

    fn pod_list(&self) -> Value {
        let items: Vec<Value> = self.pods.list().iter().filter_map(|pod| serde_json::to_value(&**pod).ok()).collect();
        json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items })
    }
}

#[async_trait]
impl Handler for KubeletServer {
    async fn handle(self: Arc<Self>, request: HttpRequest) -> HttpResponse {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        self.route(request).await.unwrap_or_else(|error| {
            tracing::debug!(%method, path, %error, "refused");
            // Plain words, as the kubelet's: the API server makes its own status of them.
            let mut response = text(error.message);
            *response.status_mut() = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            response
        })
    }
}

fn text(body: impl Into<bytes::Bytes>) -> HttpResponse {
    let mut response = Response::new(full(body));
    response.headers_mut().insert(header::CONTENT_TYPE, ::http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json_response(status: StatusCode, value: &Value) -> HttpResponse {
    let mut response = Response::new(full(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, ::http::HeaderValue::from_static("application/json"));
    response
}

fn lookup_error(error: LookupError) -> ApiError {
    let words = error.to_string();
    match error {
        LookupError::NoPod { pod, .. } => ApiError::not_found(&GroupResource { group: "", resource: "pods" }, &pod),
        LookupError::NotRunning { .. } => ApiError::new(500, Reason::InternalError, words),
        LookupError::NoContainer { .. } | LookupError::Waiting { .. } | LookupError::NoPrevious { .. } => {
            ApiError::bad_request(words)
        }
    }
}

fn upgrade_error(error: UpgradeError) -> ApiError {
    let reason = if error.status == StatusCode::FORBIDDEN { Reason::Forbidden } else { Reason::BadRequest };
    ApiError::new(error.status.as_u16(), reason, error.message)
}
