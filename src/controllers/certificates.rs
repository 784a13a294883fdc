//! Certificate requests: those of nodes are approved, approved ones are signed. It follows upstream's
//! `controller/certificates/{approver,signer}`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::node_identity::{Claim, Identities};
use super::{Context, Controller, Error, Queue, RequestSubject, Requeue, Seen, Signer, SigningOrder, Watches};
use crate::client::informer::Informer;
use crate::client::{Client, ObjectKey};
use crate::rt::clock::SharedClock;

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Signers that are served here.
const SERVED: &[&str] = &["kubernetes.io/kube-apiserver-client", KUBELET_CLIENT, KUBELET_SERVING];
const NODE_PREFIX: &str = "system:node:";

/// The controller of certificate requests.
pub(super) fn certificates(context: &Context) -> Arc<dyn Controller> {
    let client = context.client("certificate-controller");
    Arc::new(Certificates {
        requests: context.config.informers.of(),
        identities: Identities::new(client.clone()),
        client,
        signer: context.config.signer.clone(),
        clock: Arc::clone(&context.config.clock),
    })
}

struct Certificates {
    requests: Arc<Informer<CertificateSigningRequest>>,
    client: Client,
    identities: Identities,
    signer: Option<Arc<dyn Signer>>,
    clock: SharedClock,
}

fn has_condition(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

fn has_certificate(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|bytes| !bytes.0.is_empty())
}

/// Why a request is approved without a human, if it is: a node asks for its own certificate, or is about to become a node.
fn approval(spec: &CertificateSigningRequestSpec, subject: &RequestSubject) -> Option<&'static str> {
    let names_node = subject.common_name.starts_with(NODE_PREFIX) && subject.organizations == ["system:nodes"];
    let groups = spec.groups.as_deref().unwrap_or_default();
    let is_node = spec.username.as_ref() == Some(&subject.common_name) && groups.iter().any(|group| group == "system:nodes");
    let allowed = |usages: &[&str], required: &str| {
        let asked = spec.usages.as_deref().unwrap_or_default();
        asked.iter().all(|usage| usages.contains(&usage.as_str())) && asked.iter().any(|usage| usage == required)
    };
    let has_no_addresses = subject.dns_names.is_empty() && subject.ip_addresses.is_empty();
    if !names_node || subject.has_other_names {
        return None;
    }
    match spec.signer_name.as_str() {
        KUBELET_CLIENT
            if has_no_addresses && allowed(&["key encipherment", "digital signature", "client auth"], "client auth") =>
        {
            if is_node {
                Some("Auto approving self kubelet client certificate after SubjectAccessReview.")
            } else {
                let is_joining = groups.iter().any(|group| group == "system:bootstrappers");
                is_joining.then_some("Auto approving kubelet client certificate after SubjectAccessReview.")
            }
        }
        KUBELET_SERVING
            if !has_no_addresses && allowed(&["key encipherment", "digital signature", "server auth"], "server auth") =>
        {
            is_node.then_some("Auto approving kubelet serving certificate of the node itself.")
        }
        _ => None,
    }
}

impl Certificates {
    fn condition(&self, kind: &str, reason: &str, message: &str) -> CertificateSigningRequestCondition {
        let now = Some(Time(self.clock.now()));
        CertificateSigningRequestCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: now.clone(),
            last_transition_time: now,
        }
    }

    async fn decide(
        &self,
        request: &CertificateSigningRequest,
        condition: CertificateSigningRequestCondition,
    ) -> Result<(), Error> {
        let mut request = request.clone();
        request.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
        self.client.update_subresource(&request, "approval").await?;
        Ok(())
    }

    /// Approves a request that needs no human, or refuses a node's name to a machine that it does not belong to.
    async fn judge(&self, request: &CertificateSigningRequest, subject: &RequestSubject) -> Result<(), Error> {
        let Some(message) = approval(&request.spec, subject) else { return Ok(()) };
        if request.spec.signer_name == KUBELET_CLIENT {
            let node = subject.common_name.trim_start_matches(NODE_PREFIX);
            match self.identities.claim(node, &request.spec).await? {
                Claim::Granted => {}
                // Who shows no password is nobody that was seen before: a human decides.
                Claim::Unknown => return Ok(()),
                Claim::Taken => {
                    let refusal = self.condition("Denied", "NodeNameTaken", &name_taken(node));
                    return self.decide(request, refusal).await;
                }
            }
        }
        self.decide(request, self.condition("Approved", "AutoApproved", message)).await
    }

    async fn sign(&self, signer: &dyn Signer, request: &CertificateSigningRequest, pem: &str) -> Result<(), Error> {
        let spec = &request.spec;
        let seconds = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let usages = spec.usages.as_deref().unwrap_or_default();
        let uid = match signer.subject(pem) {
            Ok(RequestSubject { common_name, .. }) if spec.signer_name == KUBELET_CLIENT => {
                self.identities.uid(common_name.trim_start_matches(NODE_PREFIX)).await?
            }
            _ => String::new(),
        };
        let lifetime = seconds.map(Duration::from_secs);
        let order = SigningOrder { signer: &spec.signer_name, request_pem: pem, usages, lifetime, uid: &uid };
        let signed = signer.sign(&order);
        let mut request = request.clone();
        let status = request.status.get_or_insert_default();
        match signed {
            Ok(chain) => status.certificate = Some(ByteString(chain.into_bytes())),
            Err(why) => {
                let condition = self.condition("Failed", "SignerValidationFailure", &why);
                status.conditions.get_or_insert_default().push(condition);
            }
        }
        self.client.update_status(&request).await?;
        Ok(())
    }
}

fn name_taken(node: &str) -> String {
    format!(
        "the node name {node:?} is taken by another machine. Give this one another name (--node-name), or, if that machine is gone or was \
         installed anew, free the name with `orch node replace {node}` on a server and start this agent again"
    )
}

#[async_trait]
impl Controller for Certificates {
    fn name(&self) -> &'static str {
        "certificates"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.requests, |seen: Seen<'_, CertificateSigningRequest>, queue: &Queue| {
            seen.new.into_iter().for_each(|request| queue.add(ObjectKey::of(request)));
        });
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let (Some(request), Some(signer)) = (self.requests.get("", &key.name), &self.signer) else { return Ok(Requeue::Done) };
        let is_over = has_certificate(&request) || has_condition(&request, "Denied") || has_condition(&request, "Failed");
        if is_over || !SERVED.contains(&request.spec.signer_name.as_str()) {
            return Ok(Requeue::Done);
        }
        let pem = String::from_utf8_lossy(&request.spec.request.0).into_owned();
        if has_condition(&request, "Approved") {
            self.sign(&**signer, &request, &pem).await?;
            return Ok(Requeue::Done);
        }
        let invalid = |message| Error::Invalid { object: format!("CertificateSigningRequest {key}"), message };
        let subject = signer.subject(&pem).map_err(invalid)?;
        self.judge(&request, &subject).await?;
        Ok(Requeue::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_are_approved() {
        let spec = |user: &str, group: &str, signer: &str, usages: &[&str]| CertificateSigningRequestSpec {
            username: Some(user.to_owned()),
            groups: Some(vec![group.to_owned()]),
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
            ..CertificateSigningRequestSpec::default()
        };
        let subject = |addresses: &[&str]| RequestSubject {
            common_name: "system:node:n1".to_owned(),
            organizations: vec!["system:nodes".to_owned()],
            ip_addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            ..RequestSubject::default()
        };
        let (client, server) = (&["client auth", "digital signature"], &["server auth", "digital signature"]);
        for (spec, addresses, expected) in [
            (spec("system:bootstrap:abc", "system:bootstrappers", KUBELET_CLIENT, client), &[][..], true),
            (spec("system:node:n1", "system:nodes", KUBELET_CLIENT, client), &[], true),
            (spec("system:node:n2", "system:nodes", KUBELET_CLIENT, client), &[], false),
            (spec("mallory", "system:authenticated", KUBELET_CLIENT, client), &[], false),
            (spec("system:node:n1", "system:nodes", KUBELET_CLIENT, server), &[], false),
            (spec("system:node:n1", "system:nodes", KUBELET_SERVING, server), &["10.0.0.1"], true),
            (spec("system:node:n1", "system:nodes", KUBELET_SERVING, server), &[], false),
            (spec("system:bootstrap:abc", "system:bootstrappers", KUBELET_SERVING, server), &["10.0.0.1"], false),
        ] {
            assert_eq!(approval(&spec, &subject(addresses)).is_some(), expected, "{spec:?}");
        }
    }
}
