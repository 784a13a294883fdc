//! Identities of nodes. A node that joined is known by the Secret `NAME.node-password.orch` in `kube-system`: it holds the hash of
//! the password of the machine that has the name, and its uid is written into every certificate of the node. Whoever deletes the
//! Secret (a controller does when the Node is deleted) ends all that was issued to that identity, whenever it was.

use k8s_openapi::api::core::v1::Secret;
use ring::digest::{SHA256, digest};

use super::{UserInfo, decode};
use crate::kinds::core;
use crate::pki::hex;
use crate::store::Snapshot;

/// The field of a joining user's `extra` in which the hash of its machine's password stands; requests for certificates keep it.
pub const PASSWORD_HASH: &str = "orch.io/node-password-hash";
/// The group of those who join.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const SUFFIX: &str = ".node-password.orch";

/// The node whose identity a Secret's key in the store is.
pub fn node_of_key(key: &str) -> Option<&str> {
    key.strip_prefix(&prefix())?.strip_suffix(SUFFIX)
}

/// Where the identities are, among other Secrets.
pub fn prefix() -> String {
    format!("{}/kube-system/", core::secret::SECRET.bucket)
}

/// Whether the identity of a node that shows a certificate is still there. Users that are no nodes have none to lose.
pub fn stands(user: &UserInfo, snapshot: &Snapshot) -> bool {
    let Some(node) = user.node_name() else { return true };
    let entry = snapshot.get(&format!("{}{node}{SUFFIX}", prefix()));
    let uid = entry.and_then(|entry| decode::<Secret>(&entry)).and_then(|secret| secret.metadata.uid);
    !user.uid.is_empty() && uid.as_deref() == Some(&user.uid)
}

/// Notes the password that a joining machine shows; of others it is ignored.
pub fn with_password(user: &mut UserInfo, password: &str) {
    if user.is_in(BOOTSTRAPPERS) {
        let hash = hex(digest(&SHA256, password.as_bytes()).as_ref());
        user.extra.insert(PASSWORD_HASH.to_owned(), vec![hash]);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::authz::tests::memory_with;

    #[tokio::test]
    async fn an_identity_is_its_secret() {
        let secret = json!({"metadata": {"name": "n1.node-password.orch", "uid": "u1"}});
        let key = "core/secrets/kube-system/n1.node-password.orch";
        let store = memory_with(&[(key, secret)]).await;
        let user = |name: &str, uid: &str| UserInfo { uid: uid.to_owned(), ..UserInfo::new(name, &["system:nodes"]) };
        for (user, expected) in [
            (user("system:node:n1", "u1"), true),
            (user("system:node:n1", "u0"), false),
            (user("system:node:n1", ""), false),
            (user("system:node:n2", "u1"), false),
            (UserInfo::new("jane", &[]), true),
        ] {
            assert_eq!(stands(&user, &store.snapshot()), expected, "{user:?}");
        }
        assert_eq!(node_of_key(key), Some("n1"));
        assert_eq!(node_of_key("core/secrets/default/n1.node-password.orch"), None);
    }

    #[test]
    fn only_who_joins_has_a_password() {
        let mut joiner = UserInfo::new("system:bootstrap:abcdef", &["system:bootstrappers"]);
        let mut jane = UserInfo::new("jane", &["dev"]);
        for user in [&mut joiner, &mut jane] {
            with_password(user, "secret");
        }
        assert_eq!((joiner.extra[PASSWORD_HASH][0].len(), jane.extra.len()), (64, 0));
    }
}
