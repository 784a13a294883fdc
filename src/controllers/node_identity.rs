//! Identities of nodes: the Secret `NAME.node-password.orch` in `kube-system` holds the hash of the password of the machine that has
//! a name, and every certificate of the node carries the Secret's uid. When a Node is deleted its Secret goes first, and with it all
//! that was issued to it; only then may the Node go.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use k8s_openapi::api::core::v1::{Node, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::Informer;
use crate::client::{Cached, Client, DeleteOptions, ObjectKey, PatchKind};

const NAMESPACE: &str = "kube-system";
const HASH: &str = "hash";
/// Where a certificate request says what password its sender showed.
const PASSWORD_HASH: &str = "orch.io/node-password-hash";
const FINALIZER: &str = "orch.io/node-identity";

/// The name of the Secret that is a node's identity.
pub fn secret_name(node: &str) -> String {
    format!("{node}.node-password.orch")
}

/// The Secret that gives a node's name to the machine whose password has this hash; "" is no machine's.
pub fn secret(node: &str, hash: &str) -> Secret {
    Secret {
        metadata: ObjectMeta { name: Some(secret_name(node)), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() },
        data: Some([(HASH.to_owned(), ByteString(hash.as_bytes().to_vec()))].into()),
        type_: Some("orch.io/node-password".to_owned()),
        immutable: Some(true),
        ..Secret::default()
    }
}

/// The hash that an identity's Secret holds.
pub fn hash_of(secret: &Secret) -> &str {
    let hash = secret.data.as_ref().and_then(|data| data.get(HASH));
    hash.and_then(|hash| std::str::from_utf8(&hash.0).ok()).unwrap_or("")
}

/// Whether a machine may have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Granted,
    /// It is another machine's.
    Taken,
    /// The machine does not say who it is.
    Unknown,
}

/// Reads and makes identities. Only the leader's controllers do, one request at a time for a name.
pub(super) struct Identities {
    client: Client,
}

impl Identities {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn get(&self, node: &str) -> Result<Option<Secret>, Error> {
        match self.client.get::<Secret>(NAMESPACE, &secret_name(node)).await {
            Ok(secret) => Ok(Some(secret)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives a free name to the machine that asks for it, and says whether it has it.
    pub(super) async fn claim(&self, node: &str, spec: &CertificateSigningRequestSpec) -> Result<Claim, Error> {
        let present = self.get(node).await?;
        let claim = judge(present.as_ref(), spec);
        if let (None, Claim::Granted, Some(hash)) = (&present, claim, shown(spec)) {
            self.client.create(&secret(node, hash)).await?;
        }
        Ok(claim)
    }

    /// The uid that certificates of the node carry. A node that an administrator approved has an identity without a password.
    pub(super) async fn uid(&self, node: &str) -> Result<String, Error> {
        let secret = match self.get(node).await? {
            Some(secret) => secret,
            None => self.client.create(&secret(node, "")).await?,
        };
        secret.metadata.uid.ok_or_else(|| Error::Incomplete(format!("the identity of node {node} has no uid")))
    }
}

fn shown(spec: &CertificateSigningRequestSpec) -> Option<&str> {
    spec.extra.as_ref()?.get(PASSWORD_HASH)?.first().map(String::as_str).filter(|hash| !hash.is_empty())
}

fn judge(present: Option<&Secret>, spec: &CertificateSigningRequestSpec) -> Claim {
    let is_itself = |secret: &Secret| spec.uid.as_deref().is_some_and(|uid| Some(uid) == secret.metadata.uid.as_deref());
    match (present, shown(spec)) {
        // A node that renews its certificate has shown the one before.
        (Some(secret), _) if is_itself(secret) => Claim::Granted,
        (Some(secret), Some(hash)) if hash_of(secret) == hash => Claim::Granted,
        (Some(_), _) => Claim::Taken,
        (None, Some(_)) => Claim::Granted,
        (None, None) => Claim::Unknown,
    }
}

/// The controller that ends identities.
pub(super) fn node_identity(context: &Context) -> Arc<dyn Controller> {
    Arc::new(NodeIdentity { nodes: context.config.informers.of(), client: context.client("node-identity-controller") })
}

struct NodeIdentity {
    nodes: Arc<Informer<Node>>,
    client: Client,
}

fn is_ending(node: &Node) -> bool {
    let is_held = node.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    node.metadata.deletion_timestamp.is_some() && is_held
}

#[async_trait]
impl Controller for NodeIdentity {
    fn name(&self) -> &'static str {
        "nodeidentity"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.nodes, |seen: Seen<'_, Node>, queue: &Queue| {
            seen.new.into_iter().filter(|node| is_ending(node)).for_each(|node| queue.add(ObjectKey::of(node)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(node) = self.nodes.get("", &key.name).filter(|node| is_ending(node)) else { return Ok(Requeue::Done) };
        match self.client.delete::<Secret>(NAMESPACE, &secret_name(node.name()), &DeleteOptions::default()).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => tracing::info!(node = node.name(), "the node was removed: its certificates are good no more"),
        }
        let others: Vec<&String> = node.metadata.finalizers.iter().flatten().filter(|one| *one != FINALIZER).collect();
        let meta = json!({"finalizers": others, "resourceVersion": node.metadata.resource_version, "uid": node.metadata.uid});
        let patched = self.client.patch::<Node>("", node.name(), None, PatchKind::Merge, &json!({"metadata": meta})).await;
        match patched {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(Requeue::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_belongs_to_one_machine() {
        let spec = |hash: Option<&str>, uid: Option<&str>| CertificateSigningRequestSpec {
            extra: hash.map(|hash| [(PASSWORD_HASH.to_owned(), vec![hash.to_owned()])].into()),
            uid: uid.map(str::to_owned),
            ..CertificateSigningRequestSpec::default()
        };
        let mut mine = secret("n", "aa");
        mine.metadata.uid = Some("u1".to_owned());
        let by_hand = secret("n", "");
        for (present, spec, expected) in [
            (None, spec(Some("aa"), None), Claim::Granted),
            (None, spec(None, None), Claim::Unknown),
            (Some(&mine), spec(Some("aa"), None), Claim::Granted),
            (Some(&mine), spec(Some("bb"), None), Claim::Taken),
            (Some(&mine), spec(None, None), Claim::Taken),
            (Some(&mine), spec(None, Some("u1")), Claim::Granted),
            (Some(&mine), spec(None, Some("u0")), Claim::Taken),
            (Some(&by_hand), spec(Some(""), None), Claim::Taken),
            (Some(&by_hand), spec(None, Some("")), Claim::Taken),
        ] {
            assert_eq!(judge(present, &spec), expected, "{spec:?}");
        }
    }

    #[test]
    fn only_nodes_that_go_are_looked_at() {
        let node = |finalizer: &str, deleting: bool| -> Node {
            let mut meta = json!({"name": "n", "finalizers": [finalizer]});
            if deleting {
                meta["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            serde_json::from_value(json!({"metadata": meta})).unwrap()
        };
        assert!(is_ending(&node(FINALIZER, true)));
        assert!(!is_ending(&node(FINALIZER, false)) && !is_ending(&node("other", true)));
    }
}
