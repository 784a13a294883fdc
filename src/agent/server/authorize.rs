//! Who may ask a node: the API servers and administrators always; others by what the API says of them (TokenReview and
//! SubjectAccessReview on `nodes/...`), as upstream's kubelet with webhook authentication and authorization.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::request::Parts;
use ::http::{Method, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use tokio::time::Instant;

use crate::api::ApiError;
use crate::api::status::Reason;
use crate::client::Client;
use crate::http::PeerCertificates;
use crate::pki::Certificate;
use crate::rt::clock;

/// The API servers' name in their certificates for kubelets.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// Those who may do everything.
const MASTERS: &str = "system:masters";
/// How long an answer of the API holds; upstream's defaults.
const TOKEN: Duration = Duration::from_secs(120);
const ALLOWED: Duration = Duration::from_secs(300);
const DENIED: Duration = Duration::from_secs(30);
/// Time for the API to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Answers that are kept; with more, all are forgotten.
const KEPT: usize = 1_024;

/// Somebody, as the API knows them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Subject {
    user: String,
    groups: Vec<String>,
}

/// What somebody wants of the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wish {
    subject: Subject,
    verb: &'static str,
    subresource: &'static str,
}

/// Asks the API who somebody is and what they may do, and remembers the answers for a while.
pub struct Access {
    node: String,
    client: Client,
    tokens: Mutex<HashMap<Vec<u8>, (Instant, Option<Subject>)>>,
    verdicts: Mutex<HashMap<Wish, (Instant, bool)>>,
}

impl Access {
    /// Access to the node of this name, by what the API at `client` says.
    pub fn new(node: &str, client: &Client) -> Arc<Self> {
        let client = client.named("orch/kubelet-access");
        Arc::new(Self { node: node.to_owned(), client, tokens: Mutex::default(), verdicts: Mutex::default() })
    }

    /// Whether the request may be served.
    ///
    /// # Errors
    /// 401 for who is nobody, 403 for who may not, in upstream's words; 500 when the API does not say.
    pub async fn check(&self, request: &Parts) -> Result<(), ApiError> {
        let subject = match of_certificate(request)? {
            Some(subject) if subject.user == API_SERVER || subject.groups.iter().any(|group| group == MASTERS) => return Ok(()),
            Some(subject) => subject,
            None => self.of_token(request).await?.ok_or_else(ApiError::unauthorized)?,
        };
        let (verb, path) = (verb(&request.method), request.uri.path());
        for subresource in subresources(path) {
            if self.may(Wish { subject: subject.clone(), verb, subresource }).await? {
                return Ok(());
            }
        }
        let wanted = subresources(path).join(" nodes/");
        Err(ApiError::new(
            403,
            Reason::Forbidden,
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{wanted}])", subject.user),
        ))
    }

    async fn of_token(&self, request: &Parts) -> Result<Option<Subject>, ApiError> {
        let text = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = text.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim).filter(|token| !token.is_empty())
        else {
            return Ok(None);
        };
        let key = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        let now = clock::instant();
        if let Some((_, known)) = self.tokens.lock().get(&key).filter(|(until, _)| *until > now) {
            return Ok(known.clone());
        }
        let review = TokenReview { spec: TokenReviewSpec { token: token.to_owned(), audiences: None }, ..TokenReview::default() };
        let answer = tokio::time::timeout(ANSWER, self.client.create(&review)).await;
        let answer = answer.map_err(|_| unanswered("who this is"))?.map_err(|error| unanswered(&error.to_string()))?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        let subject = user.map(|user| Subject {
            user: user.username.unwrap_or_else(String::new),
            groups: user.groups.unwrap_or_else(Vec::new),
        });
        remember(&mut self.tokens.lock(), key, (now + TOKEN, subject.clone()));
        Ok(subject)
    }

    async fn may(&self, wish: Wish) -> Result<bool, ApiError> {
        let now = clock::instant();
        if let Some((_, known)) = self.verdicts.lock().get(&wish).filter(|(until, _)| *until > now) {
            return Ok(*known);
        }
        let attributes = ResourceAttributes {
            name: Some(self.node.clone()),
            resource: Some("nodes".to_owned()),
            subresource: Some(wish.subresource.to_owned()),
            verb: Some(wish.verb.to_owned()),
            version: Some("v1".to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(wish.subject.user.clone()),
                groups: Some(wish.subject.groups.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = tokio::time::timeout(ANSWER, self.client.create(&review)).await;
        let answer = answer.map_err(|_| unanswered("what they may"))?.map_err(|error| unanswered(&error.to_string()))?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        remember(&mut self.verdicts.lock(), wish, (now + if allowed { ALLOWED } else { DENIED }, allowed));
        Ok(allowed)
    }
}

fn remember<K: std::hash::Hash + Eq, V>(known: &mut HashMap<K, V>, key: K, value: V) {
    if known.len() >= KEPT {
        known.clear();
    }
    known.insert(key, value);
}

fn unanswered(why: &str) -> ApiError {
    ApiError::internal(format!("the API server does not say: {why}"))
}

fn of_certificate(request: &Parts) -> Result<Option<Subject>, ApiError> {
    let peer = request.extensions.get::<PeerCertificates>().filter(|peer| peer.verified);
    let Some(leaf) = peer.and_then(|peer| peer.chain.first()) else { return Ok(None) };
    let leaf = Certificate::parse(leaf).map_err(|_| ApiError::unauthorized())?;
    let mut groups = leaf.organizations;
    groups.push("system:authenticated".to_owned());
    Ok(Some(Subject { user: leaf.common_name, groups }))
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources of `nodes` any of which allows a path, as `pkg/kubelet/server/auth.go`.
fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.split('/').nth(1).unwrap_or("");
    match first {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_are_upstreams() {
        for (path, expected) in [
            ("/stats/summary", &["stats"][..]),
            ("/metrics/cadvisor", &["metrics"]),
            ("/pods", &["pods", "proxy"]),
            ("/exec/ns/pod/c", &["proxy"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
        assert_eq!((verb(&Method::POST), verb(&Method::HEAD)), ("create", "get"));
    }
}
