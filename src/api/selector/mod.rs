//! Selectors: which objects a request is about, by label ([`label::Selector`]) and by field ([`field::Selector`]).

pub mod field;
pub mod label;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::object::Object;

/// A set of labels (or of fields) that a selector can be asked about.
pub trait Values {
    /// The value at a key, if there is one.
    fn value(&self, key: &str) -> Option<&str>;
}

impl Values for BTreeMap<String, String> {
    fn value(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl<V: Values> Values for Option<V> {
    fn value(&self, key: &str) -> Option<&str> {
        self.as_ref()?.value(key)
    }
}

/// Pairs sorted by key, as the store indexes them.
impl Values for [(Arc<str>, Arc<str>)] {
    fn value(&self, key: &str) -> Option<&str> {
        let at = self.binary_search_by(|(candidate, _)| candidate.as_ref().cmp(key)).ok()?;
        self.get(at).map(|(_, value)| value.as_ref())
    }
}

impl Values for Vec<(Arc<str>, Arc<str>)> {
    fn value(&self, key: &str) -> Option<&str> {
        self.as_slice().value(key)
    }
}

/// The labels of an object.
impl Values for Object {
    fn value(&self, key: &str) -> Option<&str> {
        self.str_at(&["metadata", "labels", key])
    }
}
