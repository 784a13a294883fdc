//! The cache of an informer: the newest known state of every object, decoded once and shared, with indexes.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::ApiObject;

/// Namespace and name of an object; the namespace is "" for a cluster-scoped one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<T: Cached>(object: &T) -> Self {
        Self::new(object.namespace(), object.name())
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            formatter.write_str(&self.name)
        } else {
            write!(formatter, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What an informer can hold: a typed object, or a smaller view of one.
pub trait Cached: DeserializeOwned + Send + Sync + 'static {
    fn namespace(&self) -> &str;
    fn name(&self) -> &str;
    fn uid(&self) -> &str;
    fn resource_version(&self) -> &str;
    /// Drops what no reader of the cache uses.
    fn trim(&mut self) {}
}

impl<K: ApiObject> Cached for K {
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or("")
    }

    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or("")
    }

    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or("")
    }

    fn resource_version(&self) -> &str {
        self.metadata().resource_version.as_deref().unwrap_or("")
    }

    fn trim(&mut self) {
        self.metadata_mut().managed_fields = None;
    }
}

/// Computes the values under which an object is found in an index.
pub type IndexFn<T> = fn(&T) -> Vec<String>;

struct Index<T> {
    values_of: IndexFn<T>,
    found: HashMap<String, BTreeMap<ObjectKey, Arc<T>>>,
}

impl<T> Index<T> {
    fn insert(&mut self, key: &ObjectKey, object: &Arc<T>) {
        for value in (self.values_of)(object) {
            self.found.entry(value).or_default().insert(key.clone(), Arc::clone(object));
        }
    }

    fn remove(&mut self, key: &ObjectKey, object: &T) {
        for value in (self.values_of)(object) {
            if let Some(objects) = self.found.get_mut(&value) {
                objects.remove(key);
                if objects.is_empty() {
                    self.found.remove(&value);
                }
            }
        }
    }
}

/// Objects by namespace and name, and by every index.
pub(super) struct Cache<T> {
    namespaces: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Arc<T>>>,
    indexes: HashMap<&'static str, Index<T>>,
    count: usize,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self { namespaces: BTreeMap::new(), indexes: HashMap::new(), count: 0 }
    }
}

impl<T: Cached> Cache<T> {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<T>> {
        self.namespaces.get(namespace)?.get(name)
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.namespaces.values().flat_map(BTreeMap::values)
    }

    pub(super) fn in_namespace<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a Arc<T>> {
        self.namespaces.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    pub(super) fn by_index<'a>(&'a self, index: &str, value: &str) -> impl Iterator<Item = &'a Arc<T>> {
        self.indexes.get(index).and_then(|index| index.found.get(value)).into_iter().flat_map(BTreeMap::values)
    }

    /// Adds an index unless there is one of that name.
    pub(super) fn add_index(&mut self, name: &'static str, values_of: IndexFn<T>) {
        if self.indexes.contains_key(name) {
            return;
        }
        let mut index = Index { values_of, found: HashMap::new() };
        for object in self.iter() {
            index.insert(&ObjectKey::of(&**object), object);
        }
        self.indexes.insert(name, index);
    }

    /// Puts an object and returns the one before it.
    pub(super) fn insert(&mut self, key: &ObjectKey, object: &Arc<T>) -> Option<Arc<T>> {
        let namespace = self.namespaces.entry(Arc::clone(&key.namespace)).or_default();
        let old = namespace.insert(Arc::clone(&key.name), Arc::clone(object));
        for index in self.indexes.values_mut() {
            if let Some(old) = &old {
                index.remove(key, old);
            }
            index.insert(key, object);
        }
        self.count += usize::from(old.is_none());
        old
    }

    /// Removes an object and returns it.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<Arc<T>> {
        let namespace = self.namespaces.get_mut(&*key.namespace)?;
        let old = namespace.remove::<str>((*key.name).borrow())?;
        if namespace.is_empty() {
            self.namespaces.remove(&*key.namespace);
        }
        for index in self.indexes.values_mut() {
            index.remove(key, &old);
        }
        self.count -= 1;
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn map(namespace: &str, name: &str, app: &str) -> Arc<ConfigMap> {
        let labels = Some([("app".to_owned(), app.to_owned())].into());
        let metadata = ObjectMeta { namespace: Some(namespace.into()), name: Some(name.into()), labels, ..ObjectMeta::default() };
        Arc::new(ConfigMap { metadata, ..ConfigMap::default() })
    }

    fn app(map: &ConfigMap) -> Vec<String> {
        map.metadata.labels.iter().flat_map(|labels| labels.values().cloned()).collect()
    }

    #[test]
    fn indexes_follow_objects() {
        let mut cache = Cache::default();
        let put = |cache: &mut Cache<ConfigMap>, object: Arc<ConfigMap>| cache.insert(&ObjectKey::of(&*object), &object);
        assert!(put(&mut cache, map("a", "x", "web")).is_none());
        cache.add_index("app", app);
        put(&mut cache, map("b", "y", "web"));
        assert_eq!(cache.by_index("app", "web").count(), 2);
        assert!(put(&mut cache, map("a", "x", "db")).is_some());
        assert_eq!((cache.by_index("app", "web").count(), cache.by_index("app", "db").count()), (1, 1));
        assert!(cache.remove(&ObjectKey::new("b", "y")).is_some());
        assert_eq!((cache.len(), cache.by_index("app", "web").count(), cache.in_namespace("b").count()), (1, 0, 0));
    }
}
