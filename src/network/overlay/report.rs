//! Tells people through the Node whether its routes are there: the condition `NetworkUnavailable` and events, in the words of
//! upstream's route controller.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::plan::Problem;
use crate::client::informer::Informer;
use crate::client::recorder::{EventType, Recorder};
use crate::client::{Client, ClientError, PatchKind};
use crate::rt::clock::SharedClock;

const CONDITION: &str = "NetworkUnavailable";

/// Keeps the condition of one node.
pub(super) struct Report {
    node: String,
    client: Client,
    recorder: Recorder,
    clock: SharedClock,
    /// What events were last about.
    told: Vec<String>,
}

impl Report {
    pub(super) fn new(node: String, client: Client, recorder: Recorder, clock: SharedClock) -> Self {
        Self { node, client, recorder, clock, told: Vec::new() }
    }

    /// Brings the condition in line; says what is new as events.
    ///
    /// # Errors
    /// When the API does not take the condition: try again.
    pub(super) async fn tell(&mut self, nodes: &Informer<Node>, problems: &[Problem]) -> Result<(), ClientError> {
        let texts: Vec<String> = problems.iter().map(|problem| text(&self.node, problem)).collect();
        let about = self.about(nodes.get("", &self.node));
        for text in texts.iter().filter(|text| !self.told.contains(text)) {
            tracing::warn!(text, "pods of another node are not reached");
            self.recorder.event(&about, EventType::Warning, "FailedToCreateRoute", text.as_str());
        }
        self.told = texts;
        let Some(node) = nodes.get("", &self.node) else { return Ok(()) };
        let Some(condition) = self.wanted(&node) else { return Ok(()) };
        let patch = json!({"status": {"conditions": [condition]}});
        self.client.patch::<Node>("", &self.node, Some("status"), PatchKind::Strategic, &patch).await.map(drop)
    }

    fn about(&self, node: Option<Arc<Node>>) -> ObjectReference {
        // Upstream's events about a node carry its name as uid where they do not know better.
        let uid = node.and_then(|node| node.metadata.uid.clone()).or_else(|| Some(self.node.clone()));
        ObjectReference { kind: Some("Node".to_owned()), name: Some(self.node.clone()), uid, ..ObjectReference::default() }
    }

    /// The condition, unless the node has it already.
    fn wanted(&self, node: &Node) -> Option<NodeCondition> {
        let (status, reason, message) = match self.told.as_slice() {
            [] => ("False", "RouteCreated", "RouteController created a route".to_owned()),
            texts => ("True", "NoRouteCreated", texts.join("; ")),
        };
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let present = conditions.into_iter().find(|condition| condition.type_ == CONDITION);
        let same = present.filter(|present| present.status == status);
        if same.is_some_and(|same| same.reason.as_deref() == Some(reason) && same.message.as_ref() == Some(&message)) {
            return None;
        }
        let now = self.clock.now();
        let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
        Some(NodeCondition {
            type_: CONDITION.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: same.and_then(|same| same.last_transition_time.clone()).or(Some(now)),
        })
    }
}

fn text(own: &str, problem: &Problem) -> String {
    let Problem { node, destination, why } = problem;
    format!("Could not create route to {destination} of node {node} on node {own}: {why}")
}
