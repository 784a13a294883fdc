//! Bootstrap token cleanup: a token whose time is over is deleted.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;

use super::{Context, Controller, Error, Queue, Requeue, Seen, Watches};
use crate::client::informer::{Informer, Scope};
use crate::client::{Client, DeleteOptions, ObjectKey, Preconditions};
use crate::rt::clock::SharedClock;

/// The controller of bootstrap tokens.
pub(super) fn bootstrap_token(context: &Context) -> Arc<dyn Controller> {
    let client = context.client("bootstrap-token-cleaner");
    let query = "fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken".to_owned();
    let scope = Scope { namespace: "kube-system".to_owned(), query };
    let secrets = Informer::start(&context.tasks, client.clone(), scope);
    Arc::new(TokenCleaner { secrets, client, clock: Arc::clone(&context.config.clock) })
}

struct TokenCleaner {
    secrets: Arc<Informer<Secret>>,
    client: Client,
    clock: SharedClock,
}

/// How long a token is still good; `None` for ever. One whose end cannot be read is over.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let end = secret.data.as_ref()?.get("expiration")?;
    let end: Option<Timestamp> = std::str::from_utf8(&end.0).ok().and_then(|text| text.trim().parse().ok());
    Some(end.and_then(|end| Duration::try_from(end.duration_since(now)).ok()).unwrap_or(Duration::ZERO))
}

#[async_trait]
impl Controller for TokenCleaner {
    fn name(&self) -> &'static str {
        "bootstraptoken"
    }

    fn watch(&self, watches: &mut Watches) {
        watches.on(&self.secrets, |seen: Seen<'_, Secret>, queue: &Queue| {
            seen.new.into_iter().for_each(|secret| queue.add(ObjectKey::of(secret)));
        });
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Requeue, Error> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else { return Ok(Requeue::Done) };
        match time_left(&secret, self.clock.now()) {
            None => Ok(Requeue::Done),
            Some(Duration::ZERO) => {
                let preconditions = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
                let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
                match self.client.delete::<Secret>(&key.namespace, &key.name, &options).await {
                    Err(error) if !error.is_not_found() => Err(error.into()),
                    _ => Ok(Requeue::Done),
                }
            }
            Some(wait) => Ok(Requeue::After(wait)),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    #[test]
    fn tokens_end() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let secret = |end: &str| Secret {
            data: Some([("expiration".to_owned(), ByteString(end.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        assert_eq!(time_left(&secret("2026-01-01T00:01:00Z"), now), Some(Duration::from_secs(60)));
        assert_eq!(time_left(&secret("2025-12-31T23:59:00Z"), now), Some(Duration::ZERO));
        assert_eq!(time_left(&secret("soon"), now), Some(Duration::ZERO));
        assert_eq!(time_left(&Secret::default(), now), None);
    }
}
