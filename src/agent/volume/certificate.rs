//! Keys and certificates for projected volumes (`podCertificate`, KEP-4317): the node makes a key, asks a signer for a certificate by a
//! PodCertificateRequest, and asks anew when the signer says that it is time. Follows upstream's `pkg/kubelet/podcertificate`, words
//! included. Nothing is kept across a restart: until the certificate that is then asked for is there, the volume stays as it is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1beta1::{PodCertificateRequestSpec, PodCertificateRequestStatus};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, OwnerReference};
use k8s_openapi::{ByteString, NamespaceResourceScope};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::gather::GatherError;
use super::promoted::promoted;
use crate::agent::pod::context::Context;
use crate::pki::request::{KEY_TYPES, StubRequest};
use crate::pki::{pem, pem_blocks};
use crate::rt::random;

/// How long the first certificate of a volume is waited for before the pod's events say that it is not there.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(5);
/// How late a certificate must be for the pod's events to say so; upstream's `refreshOverdueDuration`.
const OVERDUE: Duration = Duration::from_secs(600);
/// After which time a request that somebody deleted is made anew.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Most that a renewal is put off, so that not all pods ask at once.
const LONGEST_JITTER: Duration = Duration::from_secs(300);

/// A PodCertificateRequest as it is served: v1, with the fields of v1beta1.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Request {
    pub metadata: ObjectMeta,
    pub spec: PodCertificateRequestSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<PodCertificateRequestStatus>,
}

promoted!(Request, NamespaceResourceScope, "PodCertificateRequest", "podcertificaterequests");

impl Request {
    /// What the signer decided, if it has.
    pub fn decision(&self) -> Option<&Condition> {
        let conditions = self.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().find(|condition| ["Issued", "Denied", "Failed"].contains(&condition.type_.as_str()))
    }
}

/// What became of a request.
#[derive(Debug)]
pub enum Look {
    Pending,
    /// Somebody deleted it.
    Gone,
    Decided(Arc<Request>),
}

/// A request that was made, and the key that it is for.
#[derive(Clone)]
pub struct Asked {
    pub namespace: String,
    pub name: String,
    /// Of the request as it was made.
    pub revision: u64,
    key_pem: String,
}

/// What a pod gets.
#[derive(Clone)]
pub struct Credentials {
    /// PKCS#8.
    pub key_pem: String,
    pub chain_pem: String,
    /// When to look again.
    pub renew_at: Timestamp,
    not_after: Timestamp,
    /// What the pod's events have said of its age.
    is_said_overdue: bool,
    is_said_expired: bool,
}

#[derive(Clone, Default)]
struct State {
    current: Option<Credentials>,
    asked: Option<Asked>,
    /// Why there will never be another one.
    refused: Option<String>,
}

/// Pod uid, volume, place among the volume's sources.
type Key = (String, String, usize);

/// The certificates of the node's pods.
#[derive(Default)]
pub struct Certificates(Mutex<BTreeMap<Key, State>>);

impl Certificates {
    /// Key and certificate for a projection: those that are there until it is time for others.
    ///
    /// # Errors
    /// Why there are none (yet).
    pub async fn get(
        &self,
        context: &Context,
        pod: &Pod,
        (volume, index): (&str, usize),
        projection: &PodCertificateProjection,
    ) -> Result<Credentials, GatherError> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let key: Key = (uid.clone(), volume.to_owned(), index);
        let mut state = self.0.lock().get(&key).cloned().unwrap_or_default();
        if let Some(why) = state.refused {
            return Err(GatherError::Invalid(why));
        }
        let now = context.clock.now();
        if let Some(fresh) = state.current.as_ref().filter(|current| state.asked.is_none() && current.renew_at > now) {
            return Ok(fresh.clone());
        }
        let asked = match state.asked.take() {
            Some(asked) => asked,
            None => ask(context, pod, projection).await?,
        };
        state.asked = Some(asked.clone());
        self.0.lock().insert(key.clone(), state.clone());
        let patience = if state.current.is_some() { Duration::ZERO } else { FIRST_CERTIFICATE };
        let look = context.sources.request(&uid, &asked, patience).await?;
        let outcome = settle(context, pod, &mut state, &asked, &look);
        self.0.lock().insert(key, state);
        outcome
    }

    /// Forgets the keys of a pod.
    pub fn forget(&self, uid: &str) {
        self.0.lock().retain(|(owner, _, _), _| owner != uid);
    }
}

/// Notes what became of a request.
fn settle(context: &Context, pod: &Pod, state: &mut State, asked: &Asked, look: &Look) -> Result<Credentials, GatherError> {
    let full_name = format!("{}/{}", asked.namespace, asked.name);
    let now = context.clock.now();
    let request = match look {
        Look::Decided(request) => request,
        Look::Gone => {
            state.asked = None;
            let why = format!("PodCertificateRequest {full_name:?} appears to have been deleted");
            return older(context, pod, state, now, ASK_AGAIN).ok_or(GatherError::Unavailable(why));
        }
        Look::Pending => {
            let why = "credential bundle is not issued yet".to_owned();
            // A decision is told; until then there are only the events to be seen to.
            return older(context, pod, state, now, OVERDUE).ok_or(GatherError::Unavailable(why));
        }
    };
    let empty = PodCertificateRequestStatus::default();
    let status = request.status.as_ref().unwrap_or(&empty);
    match request.decision() {
        Some(no) if no.type_ != "Issued" => {
            let verb = if no.type_ == "Denied" { "was denied" } else { "failed" };
            let told = format!("reason={:?}, message={:?}", no.reason, no.message);
            context.event(pod, None, true, &no.type_, &format!("PodCertificateRequest {full_name} {verb}, {told}"));
            let how = no.type_.to_lowercase();
            let why = format!("PodCertificateRequest was permanently {how}: reason={:?} message={:?}", no.reason, no.message);
            state.refused = Some(why.clone());
            Err(GatherError::Invalid(why))
        }
        _ => {
            let credentials = issued(status, asked, now).map_err(GatherError::Invalid)?;
            *state = State { current: Some(credentials.clone()), ..State::default() };
            Ok(credentials)
        }
    }
}

/// What the pod has goes on to serve until there is another; its events say when that is late.
fn older(context: &Context, pod: &Pod, state: &mut State, now: Timestamp, again: Duration) -> Option<Credentials> {
    let current = state.current.as_mut()?;
    if now > current.renew_at + OVERDUE && !std::mem::replace(&mut current.is_said_overdue, true) {
        context.event(pod, None, true, "CertificateOverdueForRefresh", "PodCertificate refresh overdue");
    }
    if now > current.not_after && !std::mem::replace(&mut current.is_said_expired, true) {
        context.event(pod, None, true, "CertificateExpired", "PodCertificate expired");
    }
    Some(Credentials { renew_at: now + again, ..current.clone() })
}

fn issued(status: &PodCertificateRequestStatus, asked: &Asked, now: Timestamp) -> Result<Credentials, String> {
    let chain = status.certificate_chain.as_deref().unwrap_or("");
    // Only the blocks: what stands between them is nobody's business.
    let blocks = pem_blocks(chain, "CERTIFICATE").map_err(|error| format!("the signer's certificate chain: {error}"))?;
    let at = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| time.as_ref().map(|time| time.0);
    let not_after = at(&status.not_after).unwrap_or(now);
    let begin = at(&status.begin_refresh_at).unwrap_or(not_after);
    Ok(Credentials {
        key_pem: asked.key_pem.clone(),
        chain_pem: blocks.iter().map(|block| pem("CERTIFICATE", block)).collect(),
        renew_at: begin + jitter(begin, not_after),
        not_after,
        is_said_overdue: false,
        is_said_expired: false,
    })
}

/// At most a hundredth of the time that is left when the renewal is due: no pod comes too late for it.
fn jitter(begin: Timestamp, not_after: Timestamp) -> SignedDuration {
    let left = Duration::try_from(not_after.duration_since(begin)).unwrap_or(Duration::ZERO);
    let most = (left / 100).min(LONGEST_JITTER);
    let most_ms = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    SignedDuration::from_millis(i64::try_from(random::below(most_ms)).unwrap_or(0))
}

/// Makes a key and asks the signer for a certificate.
async fn ask(context: &Context, pod: &Pod, projection: &PodCertificateProjection) -> Result<Asked, GatherError> {
    let wanted = KEY_TYPES.iter().find(|(name, _)| *name == projection.key_type);
    let Some((_, algorithm)) = wanted else {
        let known: Vec<&str> = KEY_TYPES.iter().map(|(name, _)| *name).collect();
        let why = format!("keys of type {} are not made by this version; it makes {}", projection.key_type, known.join(", "));
        return Err(GatherError::Invalid(why));
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let namespace = text(&pod.metadata.namespace);
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned());
    let found = context.client.get::<ServiceAccount>(&namespace, &account).await;
    let found = found.map_err(|error| GatherError::of_api("while fetching service account", &error))?;
    let node = context.node().ok_or_else(|| GatherError::Unavailable("the node's own object is not known yet".to_owned()))?;
    let stub = StubRequest::new(algorithm).map_err(|error| GatherError::Invalid(format!("while generating keypair: {error}")))?;
    let request = Request {
        metadata: ObjectMeta {
            namespace: Some(namespace.clone()),
            generate_name: Some("req-".to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: text(&pod.metadata.name),
                uid: text(&pod.metadata.uid),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: PodCertificateRequestSpec {
            signer_name: projection.signer_name.clone(),
            pod_name: text(&pod.metadata.name),
            pod_uid: text(&pod.metadata.uid),
            service_account_name: account,
            service_account_uid: text(&found.metadata.uid),
            node_name: text(&node.metadata.name),
            node_uid: text(&node.metadata.uid),
            max_expiration_seconds: projection.max_expiration_seconds,
            stub_pkc_s10_request: ByteString(stub.csr_der),
            unverified_user_annotations: projection.user_annotations.clone(),
            ..PodCertificateRequestSpec::default()
        },
        status: None,
    };
    let made = context.client.create(&request).await;
    let made = made.map_err(|error| GatherError::of_api("while creating PodCertificateRequest", &error))?;
    Ok(Asked {
        namespace,
        name: text(&made.metadata.name),
        revision: text(&made.metadata.resource_version).parse().unwrap_or(u64::MAX),
        key_pem: stub.key_pem,
    })
}
