//! Service account tokens: what their claims say, how they are issued, and when one is still good.
//!
//! Follows upstream's `pkg/serviceaccount/claims.go`: a token is bound to its service account, and may be bound to a Pod, Secret
//! or Node; it dies with what it is bound to.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{UserInfo, decode};
use crate::kinds::core;
use crate::pki::jwt::{SigningKey, TokenError};
use crate::rt::clock::SharedClock;
use crate::rt::random;
use crate::store::{Snapshot, Store};

/// Claims are taken this much before `nbf`: clocks differ.
const LEEWAY_SECONDS: i64 = 60;
/// A token that a pod asked for with this lifetime is warned about after [`WARN_AFTER`], but lives for [`EXTENDED`].
pub const WARN_AFTER: Duration = Duration::from_secs(3_607);
/// Life of a token of a pod whose client may never read it again, as upstream's `--service-account-extend-token-expiration`.
pub const EXTENDED: Duration = Duration::from_secs(365 * 86_400);

/// A name and uid in the claims.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    pub namespace: String,
    pub serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims of a service account token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Binding,
    nbf: i64,
    sub: String,
}

/// Why a service account token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the claims are not those of a service account token")]
    Claims,
    #[error("the issuer is another")]
    Issuer,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience { found: Vec<String>, wanted: Vec<String> },
    #[error("{0} has been deleted or replaced")]
    Unbound(String),
}

/// A token that is good, and for which of the audiences asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

/// Issues and verifies the tokens of service accounts.
pub struct TokenIssuer {
    key: Arc<SigningKey>,
    issuer: String,
    audiences: Vec<String>,
    clock: SharedClock,
}

impl TokenIssuer {
    /// An issuer for a cluster domain: `https://kubernetes.default.svc.cluster.local`.
    pub fn new(key: Arc<SigningKey>, cluster_domain: &str, clock: SharedClock) -> Self {
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        let audiences = vec![issuer.clone(), "orch".to_owned()];
        Self { key, issuer, audiences, clock }
    }

    /// The `iss` of the tokens.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences of the API server itself; the first is the default of new tokens.
    pub fn api_audiences(&self) -> &[String] {
        &self.audiences
    }

    /// Signs a token. `binding.warnafter` is seconds from now here, and a time in the token.
    ///
    /// # Errors
    /// Only when the random number generator fails.
    pub fn issue(
        &self,
        mut binding: Binding,
        audiences: &[String],
        lifetime: Duration,
    ) -> Result<(String, Timestamp), TokenError> {
        let now = self.clock.now().as_second();
        let exp = now.saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 2));
        binding.warnafter = binding.warnafter.map(|seconds| now.saturating_add(seconds));
        let sub = format!("system:serviceaccount:{}:{}", binding.namespace, binding.serviceaccount.name);
        let aud = if audiences.is_empty() { vec![self.issuer.clone()] } else { audiences.to_vec() };
        let claims =
            Claims { aud, exp, iat: now, iss: self.issuer.clone(), jti: random::uid(), kubernetes: binding, nbf: now, sub };
        let claims = serde_json::to_value(&claims).map_err(|_| TokenError::Malformed)?;
        let expires = Timestamp::from_second(exp).unwrap_or(Timestamp::MAX);
        Ok((self.key.sign(&claims)?, expires))
    }

    /// Whether a token may be of this issuer: other tokens are for other authenticators.
    pub fn is_ours(&self, token: &str) -> bool {
        crate::pki::jwt::unverified_issuer(token).is_some_and(|issuer| issuer == self.issuer)
    }

    /// Checks a token and everything that it is bound to; `audiences` empty means those of the API server.
    ///
    /// # Errors
    /// [`InvalidToken`].
    pub fn verify(&self, token: &str, audiences: &[String], store: &dyn Store) -> Result<Verified, InvalidToken> {
        let claims: Claims = serde_json::from_value(self.key.verify(token)?).map_err(|_| InvalidToken::Claims)?;
        let now = self.clock.now().as_second();
        let wanted = if audiences.is_empty() { self.audiences.as_slice() } else { audiences };
        let matching: Vec<String> = wanted.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        let expected = format!("system:serviceaccount:{}:{}", claims.kubernetes.namespace, claims.kubernetes.serviceaccount.name);
        if claims.iss != self.issuer {
            return Err(InvalidToken::Issuer);
        }
        if claims.sub != expected {
            return Err(InvalidToken::Claims);
        }
        if claims.exp <= now {
            return Err(InvalidToken::Expired);
        }
        if claims.nbf > now + LEEWAY_SECONDS {
            return Err(InvalidToken::NotYet);
        }
        if matching.is_empty() {
            return Err(InvalidToken::Audience { found: claims.aud, wanted: wanted.to_vec() });
        }
        let user = bound_user(&claims, &store.snapshot(), self.clock.now())?;
        Ok(Verified { user, audiences: matching })
    }

    /// The document at `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }

    /// The document at `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        json!({"keys": [self.key.jwk()]})
    }
}

#[derive(Deserialize)]
struct Meta {
    metadata: ObjectMeta,
}

/// The object is there, has the uid of the token, and is not being deleted for longer than a minute.
fn check_bound(snapshot: &Snapshot, what: &str, key: &str, reference: &Reference, now: Timestamp) -> Result<(), InvalidToken> {
    let gone = || InvalidToken::Unbound(format!("{what} {:?}", reference.name));
    let meta = snapshot.get(key).and_then(|entry| decode::<Meta>(&entry)).ok_or_else(gone)?.metadata;
    let long_gone = meta.deletion_timestamp.is_some_and(|at| at.0.as_second() + LEEWAY_SECONDS < now.as_second());
    if long_gone || meta.uid.as_deref() != Some(reference.uid.as_str()) {
        return Err(gone());
    }
    Ok(())
}

fn bound_user(claims: &Claims, snapshot: &Snapshot, now: Timestamp) -> Result<UserInfo, InvalidToken> {
    let Binding { namespace, serviceaccount, pod, secret, node, .. } = &claims.kubernetes;
    let key = |bucket: &str, name: &str| format!("{bucket}/{namespace}/{name}");
    let account = key(core::service_account::SERVICE_ACCOUNT.bucket, &serviceaccount.name);
    check_bound(snapshot, "service account", &account, serviceaccount, now)?;
    let mut user = UserInfo::service_account(namespace, &serviceaccount.name);
    user.uid.clone_from(&serviceaccount.uid);
    let mut extra = |name: &str, value: &str| {
        user.extra.insert(format!("authentication.kubernetes.io/{name}"), vec![value.to_owned()]);
    };
    extra("credential-id", &format!("JTI={}", claims.jti));
    if let Some(secret) = secret {
        check_bound(snapshot, "secret", &key(core::secret::SECRET.bucket, &secret.name), secret, now)?;
    }
    if let Some(pod) = pod {
        check_bound(snapshot, "pod", &key(core::pod::POD.bucket, &pod.name), pod, now)?;
        extra("pod-name", &pod.name);
        extra("pod-uid", &pod.uid);
    }
    if let Some(node) = node {
        // A token of a pod names its node for information only, as upstream has it.
        if pod.is_none() {
            check_bound(snapshot, "node", &format!("{}/{}", core::node::NODE.bucket, node.name), node, now)?;
        }
        extra("node-name", &node.name);
        if !node.uid.is_empty() {
            extra("node-uid", &node.uid);
        }
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authz::tests::memory_with;
    use crate::rt::clock::FakeClock;

    #[tokio::test]
    async fn a_token_lives_as_long_as_what_it_is_bound_to() {
        let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
        let issuer = TokenIssuer::new(Arc::new(SigningKey::generate().unwrap()), "c.local", clock.clone());
        let account = json!({"metadata": {"name": "a", "namespace": "ns", "uid": "1"}});
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "2"}});
        let both = memory_with(&[("core/serviceaccounts/ns/a", account.clone()), ("core/pods/ns/p", pod)]).await;
        let no_pod = memory_with(&[("core/serviceaccounts/ns/a", account)]).await;
        let reference = |name: &str, uid: &str| Reference { name: name.to_owned(), uid: uid.to_owned() };
        let binding = |account_uid: &str| Binding {
            namespace: "ns".to_owned(),
            serviceaccount: reference("a", account_uid),
            pod: Some(reference("p", "2")),
            ..Binding::default()
        };
        let (token, _) = issuer.issue(binding("1"), &[], Duration::from_secs(600)).unwrap();
        let verified = issuer.verify(&token, &[], &*both).unwrap();
        assert_eq!(verified.user.name, "system:serviceaccount:ns:a");
        assert_eq!(verified.user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns"]);
        assert_eq!(verified.user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert!(matches!(issuer.verify(&token, &[], &*no_pod), Err(InvalidToken::Unbound(_))));
        assert!(matches!(issuer.verify(&token, &["x".to_owned()], &*both), Err(InvalidToken::Audience { .. })));
        let (replaced, _) = issuer.issue(binding("other"), &[], Duration::from_secs(600)).unwrap();
        assert!(matches!(issuer.verify(&replaced, &[], &*both), Err(InvalidToken::Unbound(_))));
        clock.advance(Duration::from_secs(601));
        assert_eq!(issuer.verify(&token, &[], &*both), Err(InvalidToken::Expired));
        assert!(issuer.is_ours(&token) && !issuer.is_ours("abc"));
    }
}
