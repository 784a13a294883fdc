//! Bootstrap tokens, `abcdef.0123456789abcdef`: Secrets in `kube-system` by which a machine joins. Follows upstream's
//! `plugin/pkg/auth/authenticator/token/bootstrap`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use super::{Unauthenticated, same_secret};
use crate::auth::{UserInfo, decode};
use crate::kinds::core;
use crate::store::Snapshot;

/// The group of all bootstrap tokens.
const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// Id and secret of a text that has the form of a bootstrap token.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    let (id, secret) = token.split_once('.')?;
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Whether a token is the cluster's own after that was changed (`orch token rotate`); `None` if it never was.
pub(super) fn is_cluster_token(token: &str, snapshot: &Snapshot) -> Option<bool> {
    let key = format!("{}/kube-system/orch-token", core::secret::SECRET.bucket);
    let secret = decode::<Secret>(&*snapshot.get(&key)?)?;
    let kept = secret.data.unwrap_or_default().remove("token")?;
    let kept = std::str::from_utf8(&kept.0).unwrap_or("");
    Some(!kept.is_empty() && same_secret(kept, token))
}

/// The user of a bootstrap token; `None` if the text is none.
pub(super) fn authenticate(token: &str, snapshot: &Snapshot, now: Timestamp) -> Result<Option<UserInfo>, Unauthenticated> {
    let Some((id, secret)) = parse(token) else { return Ok(None) };
    let refused = |why: &str| Err(Unauthenticated(format!("bootstrap token {id}: {why}")));
    let key = format!("{}/kube-system/bootstrap-token-{id}", core::secret::SECRET.bucket);
    let Some(found) = snapshot.get(&key).and_then(|entry| decode::<Secret>(&entry)) else { return refused("unknown") };
    let data = found.data.unwrap_or_default();
    let text = |name: &str| data.get(name).and_then(|value| std::str::from_utf8(&value.0).ok()).unwrap_or("");
    if found.metadata.deletion_timestamp.is_some() || found.type_.as_deref() != Some("bootstrap.kubernetes.io/token") {
        return refused("not a bootstrap token, or being deleted");
    }
    if text("token-id") != id || !same_secret(text("token-secret"), secret) {
        return refused("the secret is another");
    }
    let expiration = text("expiration");
    if !expiration.is_empty() && !expiration.parse::<Timestamp>().is_ok_and(|end| end > now) {
        return refused("expired");
    }
    if text("usage-bootstrap-authentication") != "true" {
        return refused("not for authentication");
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    let extra = text("auth-extra-groups").split(',').filter(|group| !group.is_empty());
    for group in extra {
        if !group.starts_with("system:bootstrappers:") {
            return refused("a group that is not of bootstrappers");
        }
        groups.push(group.to_owned());
    }
    Ok(Some(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() }))
}
