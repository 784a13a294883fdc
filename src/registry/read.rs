//! Reads of stored objects by bucket, for those below the API that must know others' objects: admission and authorization.

use std::sync::Arc;

use crate::api::Object;
use crate::store::Store;

/// Reads what is stored now. Clones share the store.
#[derive(Clone)]
pub struct Reader {
    store: Arc<dyn Store>,
}

impl Reader {
    /// A reader of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The object of a bucket (`core/secrets`), if it is there; namespace "" for a cluster-scoped one.
    pub fn get(&self, bucket: &str, namespace: &str, name: &str) -> Option<Object> {
        let key = if namespace.is_empty() { format!("{bucket}/{name}") } else { format!("{bucket}/{namespace}/{name}") };
        let entry = self.store.snapshot().get(&key)?;
        decode(&entry.bytes)
    }

    /// All objects of a bucket, or of one namespace in it, in order of their names.
    pub fn list(&self, bucket: &str, namespace: &str) -> Vec<Object> {
        let prefix = if namespace.is_empty() { format!("{bucket}/") } else { format!("{bucket}/{namespace}/") };
        self.store.snapshot().range(&prefix, None).filter_map(|entry| decode(&entry.bytes)).collect()
    }
}

fn decode(bytes: &[u8]) -> Option<Object> {
    Object::from_json(bytes).inspect_err(|error| tracing::error!(%error, "a stored object does not decode")).ok()
}
