//! The kubelet's HTTPS server (:10250): logs, exec, attach, port-forward, the pods of the node, health and metrics. The API
//! server is its client; paths and parameters are upstream's kubelet's.
//!
//! Only certificates that the cluster's client CA signed are believed, and of those only the API servers' and administrators'.

use std::sync::Arc;

use ::http::{Method, Response, StatusCode, header};
use async_trait::async_trait;
use serde_json::{Value, json};

use super::pods::{LookupError, Pods};
use crate::api::ApiError;
use crate::api::status::{GroupResource, Reason};
use crate::cri::Runtime;
use crate::http::listener::Listener;
use crate::http::streams::UpgradeError;
use crate::http::{Handler, HttpRequest, HttpResponse, PeerCertificates, full};
use crate::pki::Certificate;
use crate::rt::clock::SharedClock;
use crate::rt::{TaskGroup, metrics};

mod command;
mod forward;
mod logs;
mod query;
mod tail;

use query::Query;

/// The API servers' name in their certificates for kubelets.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// Those who may do everything.
const MASTERS: &str = "system:masters";

/// Serves the pods of one node.
pub struct KubeletServer {
    pods: Arc<Pods>,
    runtime: Arc<dyn Runtime>,
    clock: SharedClock,
    tasks: TaskGroup,
}

impl KubeletServer {
    /// A server of these pods; streams run in `tasks`.
    pub fn new(pods: Arc<Pods>, runtime: Arc<dyn Runtime>, clock: SharedClock, tasks: &TaskGroup) -> Arc<Self> {
        Arc::new(Self { pods, runtime, clock, tasks: tasks.clone() })
    }

    /// Serves until the tasks are cancelled. The listener's TLS must know the client CA.
    pub async fn serve(self: Arc<Self>, listener: Listener) {
        let tasks = self.tasks.clone();
        listener.serve(self, tasks).await;
    }

    async fn route(&self, mut request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        if let ["healthz" | "livez", ..] = parts[..] {
            return Ok(text("ok"));
        }
        authorize(&request)?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
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
            _ => Err(ApiError::no_such_path()),
        }
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
            let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            json_response(status, &error.to_value())
        })
    }
}

/// Whoever may reach a node may run commands in its containers, so this is for API servers and administrators alone.
fn authorize(request: &HttpRequest) -> Result<(), ApiError> {
    let peer = request.extensions().get::<PeerCertificates>().filter(|peer| peer.verified);
    let leaf = peer.and_then(|peer| peer.chain.first()).ok_or_else(ApiError::unauthorized)?;
    let leaf = Certificate::parse(leaf).map_err(|_| ApiError::unauthorized())?;
    if leaf.common_name == API_SERVER || leaf.organizations.iter().any(|group| group == MASTERS) {
        return Ok(());
    }
    let message =
        format!("Forbidden (user={}, verb={}, resource=nodes)", leaf.common_name, request.method().as_str().to_lowercase());
    Err(ApiError::new(403, Reason::Forbidden, message))
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
