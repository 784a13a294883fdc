//! ServiceAccount: each pod runs as a service account of its namespace, and gets that account's token as a projected volume.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Context, Plugin, containers_mut, list_mut};
use crate::api::{ApiError, Object};
use crate::registry::Operation;
use crate::rt::random;

/// Where containers find the token, the cluster's CA and their namespace.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// An hour, and seven seconds by which upstream tells these tokens from others.
const EXPIRATION_SECONDS: u32 = 3607;

/// The plugin.
pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, context: &mut Context<'_>, pod: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        let is_mirror = pod.annotation("kubernetes.io/config.mirror").is_some();
        if !context.is_core("Pod") || context.attributes.operation != Operation::Create || is_mirror {
            return Ok(());
        }
        let name = pod.str_at(&["spec", "serviceAccountName"]).filter(|name| !name.is_empty()).unwrap_or("default").to_owned();
        pod.set(&["spec", "serviceAccountName"], name.as_str());
        pod.set(&["spec", "serviceAccount"], name.as_str());
        let namespace = context.attributes.namespace;
        let Some(account) = context.reader.get("core/serviceaccounts", namespace, &name) else {
            return Err(context.forbidden(format_args!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        if pod.get(&["spec", "imagePullSecrets"]).and_then(Value::as_array).is_none_or(Vec::is_empty)
            && let Some(secrets) = account.get(&["imagePullSecrets"]).filter(|secrets| secrets.is_array())
        {
            pod.set(&["spec", "imagePullSecrets"], secrets.clone());
        }
        if wants_token(pod, &account) {
            mount_token(pod);
        }
        Ok(())
    }
}

/// The pod decides, then the account; the default is yes.
fn wants_token(pod: &Object, account: &Object) -> bool {
    let of_pod = pod.get(&["spec", "automountServiceAccountToken"]).and_then(Value::as_bool);
    let of_account = account.get(&["automountServiceAccountToken"]).and_then(Value::as_bool);
    of_pod.or(of_account).unwrap_or(true)
}

fn mount_token(pod: &mut Object) {
    let existing = pod
        .get(&["spec", "volumes"])
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| format!("kube-api-access-{}", random::suffix(5)));
    let mut needed = false;
    for container in containers_mut(pod) {
        let Some(mounts) = list_mut(container, "volumeMounts") else { continue };
        if mounts.iter().all(|mount| mount["mountPath"] != MOUNT_PATH) {
            mounts.push(json!({"name": name, "mountPath": MOUNT_PATH, "readOnly": true}));
            needed = true;
        }
    }
    let spec = pod.0.get_mut("spec").filter(|_| needed && existing.is_none());
    if let Some(volumes) = spec.and_then(|spec| list_mut(spec, "volumes")) {
        volumes.push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": EXPIRATION_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}
