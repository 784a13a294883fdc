//! Asking the cluster for a certificate (`CertificateSigningRequest`), and waiting for it.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{JoinConfig, JoinError};
use crate::client::Client;
use crate::client::informer::{Change, Informer, Scope};
use crate::pki::Identity;
use crate::pki::request::SigningRequest;
use crate::rt::TaskGroup;

pub(super) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(super) const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long a request may wait; an administrator may have to approve it.
const APPROVAL: Duration = Duration::from_secs(300);

/// Asks the cluster for a certificate and waits for it.
pub(super) async fn request(
    config: &JoinConfig,
    client: &Client,
    signer: &str,
    tasks: &TaskGroup,
) -> Result<Identity, JoinError> {
    let user = format!("system:node:{}", config.node_name);
    let is_serving = signer == SERVING_SIGNER;
    let sans = if is_serving { vec![config.node_name.clone(), config.node_ip.to_string()] } else { Vec::new() };
    let signing = SigningRequest::new(&user, &["system:nodes".to_owned()], &sans)?;
    let usages = ["digital signature", if is_serving { "server auth" } else { "client auth" }];
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("node-csr-".to_owned()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(signing.csr_pem.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(usages.map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let step = "the cluster does not take the node's certificate request";
    let created = client.create(&csr).await.map_err(|source| JoinError::Api { step, source })?;
    let name = created.metadata.name.unwrap_or_else(String::new);
    // The watch ends with its group.
    let watching = tasks.child();
    let waited = tokio::time::timeout(APPROVAL, signed(client, &name, &watching)).await;
    watching.cancel();
    let why = format!("nobody approved it within {} s: kubectl certificate approve {name}", APPROVAL.as_secs());
    let chain_pem = waited.unwrap_or(Err(JoinError::NotSigned { name, why }))?;
    Ok(Identity { chain_pem, key_pem: signing.key_pem })
}

async fn signed(client: &Client, name: &str, tasks: &TaskGroup) -> Result<String, JoinError> {
    let not_signed = |why: String| JoinError::NotSigned { name: name.to_owned(), why };
    let scope = Scope { namespace: String::new(), query: format!("fieldSelector=metadata.name%3D{name}") };
    let requests = Informer::<CertificateSigningRequest>::start(tasks, client.clone(), scope);
    let mut changes = requests.subscribe();
    while let Some(change) = changes.next().await {
        let csr = match &change {
            Change::Applied { new, .. } => new,
            Change::Deleted(_) => return Err(not_signed("it was deleted".to_owned())),
            Change::Synced => continue,
        };
        let Some(status) = &csr.status else { continue };
        if let Some(certificate) = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty()) {
            return String::from_utf8(certificate.0.clone()).map_err(|error| not_signed(error.to_string()));
        }
        let mut conditions = status.conditions.iter().flatten();
        if let Some(refusal) = conditions.find(|condition| ["Denied", "Failed"].contains(&condition.type_.as_str())) {
            return Err(not_signed(refusal.message.clone().unwrap_or_else(|| refusal.type_.clone())));
        }
    }
    Err(not_signed("the agent stops".to_owned()))
}
