//! `healthCheckNodePort`: a load balancer asks each node whether it has endpoints of a Service with external policy Local.
//! It follows upstream's `proxy/healthcheck/service_health.go`.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use http::{Response, StatusCode, header};
use k8s_openapi::api::core::v1::ObjectReference;
use parking_lot::Mutex;

use super::plan::HealthCheck;
use crate::client::ObjectKey;
use crate::client::recorder::{EventType, Recorder};
use crate::http::listener::Listener;
use crate::http::{Handler, HttpRequest, HttpResponse, full};
use crate::network::parts::PartContext;
use crate::rt::TaskGroup;

/// What one port answers.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    service: ObjectKey,
    local_endpoints: usize,
}

struct Port {
    answer: Arc<Mutex<Answer>>,
    tasks: TaskGroup,
}

/// The listeners of this node.
pub(super) struct HealthServer {
    ports: HashMap<u16, Port>,
    tasks: TaskGroup,
    node: String,
    recorder: Recorder,
    /// What was said of ports that cannot be bound: once each.
    said: HashMap<u16, String>,
}

impl HealthServer {
    pub(super) fn new(context: &PartContext, recorder: Recorder) -> Self {
        let (tasks, node) = (context.tasks.child(), context.node.clone());
        Self { ports: HashMap::new(), tasks, node, recorder, said: HashMap::new() }
    }

    /// Listens at exactly these ports; returns whether it does. One that cannot be bound is tried again at the next call.
    pub(super) async fn set(&mut self, wanted: impl Iterator<Item = (&ObjectKey, HealthCheck)>) -> bool {
        let answer = |(service, health): (&ObjectKey, HealthCheck)| {
            (health.port, Answer { service: service.clone(), local_endpoints: health.local_endpoints })
        };
        let wanted: HashMap<u16, Answer> = wanted.map(answer).collect();
        self.ports.retain(|port, listening| {
            let kept = wanted.contains_key(port);
            if !kept {
                listening.tasks.cancel();
            }
            kept
        });
        let mut failed = HashMap::new();
        for (port, answer) in wanted {
            if let Some(listening) = self.ports.get(&port) {
                *listening.answer.lock() = answer;
                continue;
            }
            match self.listen(port, answer.clone()).await {
                Ok(listening) => drop(self.ports.insert(port, listening)),
                Err(error) => {
                    let Answer { service, .. } = &answer;
                    let text = format!("node {} failed to start healthcheck \"{service}\" on port {port}: {error}", self.node);
                    self.tell(port, service, &text);
                    failed.insert(port, text);
                }
            }
        }
        self.said = failed;
        self.said.is_empty()
    }

    fn tell(&self, port: u16, service: &ObjectKey, text: &str) {
        if self.said.get(&port).is_some_and(|said| said == text) {
            return;
        }
        tracing::warn!(%service, port, text, "cannot serve healthCheckNodePort; trying again");
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(service.namespace.to_string()),
            name: Some(service.name.to_string()),
            ..ObjectReference::default()
        };
        self.recorder.event(&about, EventType::Warning, "FailedToStartServiceHealthcheck", text);
    }

    async fn listen(&self, port: u16, answer: Answer) -> std::io::Result<Port> {
        let listener = Listener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), None).await?;
        let answer = Arc::new(Mutex::new(answer));
        let tasks = self.tasks.child();
        self.tasks.spawn(listener.serve(Arc::new(Endpoint(Arc::clone(&answer))), tasks.clone()));
        Ok(Port { answer, tasks })
    }
}

impl Drop for HealthServer {
    fn drop(&mut self) {
        self.tasks.cancel();
    }
}

struct Endpoint(Arc<Mutex<Answer>>);

#[async_trait]
impl Handler for Endpoint {
    async fn handle(self: Arc<Self>, _: HttpRequest) -> HttpResponse {
        let Answer { service, local_endpoints } = self.0.lock().clone();
        let body = serde_json::json!({
            "service": { "namespace": &*service.namespace, "name": &*service.name },
            "localEndpoints": local_endpoints,
            "serviceProxyHealthy": true,
        });
        let mut response = Response::new(full(format!("{body:#}")));
        if local_endpoints == 0 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
        headers.insert("x-load-balancing-endpoint-weight", header::HeaderValue::from(local_endpoints));
        response
    }
}
