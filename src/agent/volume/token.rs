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

/// A token and when the next one is due.
#[derive(Debug, Clone)]
pub struct Token {
    pub text: String,
    pub renew_at: Timestamp,
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
        if let Some(known) = self.0.lock().get(&key).filter(|known| known.renew_at > now) {
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
        let token = Token { text: status.token.unwrap_or_default(), renew_at: renew_at(now, expires_at) };
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
