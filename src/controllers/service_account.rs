//! Gives every namespace what pods in it need from the first moment: the ServiceAccount `default` and the ConfigMap
//! `kube-root-ca.crt`; makes them again, and makes them right again.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::{Informer, Scope};
use crate::client::{Cached, Client, ClientError, ObjectKey, PatchKind};

const ACCOUNT: &str = "default";
const CA_MAP: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// The controller of default service accounts and root certificates.
pub(super) fn service_account(context: &Context) -> Arc<dyn Controller> {
    let client = context.client("service-account-controller");
    let named = |name: &str| Scope { namespace: String::new(), query: format!("fieldSelector=metadata.name%3D{name}") };
    Arc::new(ServiceAccounts {
        namespaces: context.config.informers.of(),
        // Only the objects of one name are held.
        accounts: Informer::start(&context.tasks, client.clone(), named(ACCOUNT)),
        maps: Informer::start(&context.tasks, client.clone(), named(CA_MAP)),
        client,
        root_ca_pem: context.config.root_ca_pem.clone(),
    })
}

struct ServiceAccounts {
    namespaces: Arc<Informer<Namespace>>,
    accounts: Arc<Informer<ServiceAccount>>,
    maps: Arc<Informer<ConfigMap>>,
    client: Client,
    root_ca_pem: String,
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// Another writer was faster, or the namespace is on its way out: both are fine.
fn tolerate(result: Result<(), ClientError>) -> Result<(), ClientError> {
    match result {
        Err(error) if error.is_already_exists() || error.api().is_some_and(|error| error.code == 403) || error.is_not_found() => {
            Ok(())
        }
        other => other,
    }
}

impl ServiceAccounts {
    async fn ensure_account(&self, namespace: &str) -> Result<(), ClientError> {
        if self.accounts.get(namespace, ACCOUNT).is_some() {
            return Ok(());
        }
        let account = ServiceAccount { metadata: meta(namespace, ACCOUNT), ..ServiceAccount::default() };
        tolerate(self.client.create(&account).await.map(drop))
    }

    async fn ensure_map(&self, namespace: &str) -> Result<(), ClientError> {
        let data = [(CA_KEY.to_owned(), self.root_ca_pem.clone())].into();
        let Some(present) = self.maps.get(namespace, CA_MAP) else {
            let mut metadata = meta(namespace, CA_MAP);
            metadata.annotations = Some([("kubernetes.io/description".to_owned(), DESCRIPTION.to_owned())].into());
            let map = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
            return tolerate(self.client.create(&map).await.map(drop));
        };
        if present.data.as_ref() == Some(&data) {
            return Ok(());
        }
        let mut wrong: serde_json::Map<_, _> =
            present.data.iter().flatten().map(|(key, _)| (key.clone(), serde_json::Value::Null)).collect();
        wrong.insert(CA_KEY.to_owned(), json!(self.root_ca_pem));
        let patch = json!({"data": wrong});
        tolerate(self.client.patch::<ConfigMap>(namespace, CA_MAP, None, PatchKind::Merge, &patch).await.map(drop))
    }
}

/// Looks at the namespace of an object that changed.
fn namespace_of<T: Cached>(seen: &Seen<'_, T>, queue: &Queue) {
    seen.newest().into_iter().for_each(|object| queue.add(ObjectKey::new("", object.namespace())));
}

#[async_trait]
impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        "serviceaccount"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.namespaces, |seen: Seen<'_, Namespace>, queue: &Queue| {
            seen.new.into_iter().for_each(|namespace| queue.add(ObjectKey::of(namespace)));
        });
        watches.on(&self.accounts, |seen: Seen<'_, ServiceAccount>, queue: &Queue| namespace_of(&seen, queue));
        watches.on(&self.maps, |seen: Seen<'_, ConfigMap>, queue: &Queue| namespace_of(&seen, queue));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let namespace = self.namespaces.get("", &key.name).filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
        if namespace.is_some() {
            self.ensure_account(&key.name).await?;
            self.ensure_map(&key.name).await?;
        }
        Ok(Requeue::Done)
    }
}
