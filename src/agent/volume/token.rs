//! Tokens of service accounts for projected volumes: asked for by TokenRequest, bound to the pod, kept in memory, renewed in time.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use parking_lot::Mutex;

use super::LONGEST_TOKEN_USE;
use crate::client::{Client, ClientError};

const DEFAULT_SECONDS: i64 = 3_600;

/// How far ahead of the clock a token may have been made; servers allow as much.
const SKEW: Duration = Duration::from_secs(60);

/// A token and when the next one is due.
#[derive(Debug, Clone)]
pub struct Token {
    pub text: String,
    made_at: Timestamp,
    pub renew_at: Timestamp,
}

impl Token {
    /// A token that was made before the clock was set back is not valid yet.
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.renew_at > now && self.made_at <= now + SKEW
    }
}

/// Pod uid, audience, seconds of life.
type Key = (String, String, i64);

/// The tokens of the node's pods.
#[derive(Default)]
pub struct Tokens(Mutex<BTreeMap<Key, Token>>);

impl Tokens {
    /// The token for a projection; a new one if there is none or the known one is to be renewed.
    ///
    /// # Errors
    /// The API's answer.
    pub async fn get(
        &self,
        client: &Client,
        pod: &Pod,
        projection: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<Token, ClientError> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let seconds = projection.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let key = (text(&pod.metadata.uid), text(&projection.audience), seconds);
        if let Some(known) = self.0.lock().get(&key).filter(|known| known.is_fresh(now)) {
            return Ok(known.clone());
        }
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
        let namespace = text(&pod.metadata.namespace);
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: projection.audience.clone().filter(|audience| !audience.is_empty()).map(|audience| vec![audience]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let answer: TokenRequest = client.post(&path, &request).await?;
        let status = answer.status.unwrap_or_default();
        let expires_at = status.expiration_timestamp.map_or(now, |at| at.0);
        let token = Token { text: status.token.unwrap_or_default(), made_at: now, renew_at: renew_at(now, expires_at) };
        self.0.lock().insert(key, token.clone());
        Ok(token)
    }

    /// Forgets the tokens of a pod.
    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|(owner, _, _), _| owner != uid);
    }
}

/// At four fifths of the token's life, and after a day at the latest.
fn renew_at(now: Timestamp, expires_at: Timestamp) -> Timestamp {
    let life = Duration::try_from(expires_at.duration_since(now)).unwrap_or(Duration::ZERO);
    now + life.mul_f64(0.8).clamp(Duration::from_secs(10), LONGEST_TOKEN_USE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_used_while_they_are_valid() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let token = Token { text: String::new(), made_at: second(1_000), renew_at: renew_at(second(1_000), second(1_600)) };
        assert_eq!(token.renew_at, second(1_480));
        let fresh: Vec<bool> = [900, 940, 1_479, 1_480].into_iter().map(|now| token.is_fresh(second(now))).collect();
        assert_eq!(fresh, [false, true, true, false]);
    }
}
