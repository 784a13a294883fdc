//! Strategic merge patch, after `apimachinery/pkg/util/strategicpatch`: a merge patch that merges lists by the keys of their
//! elements, with the directives `$patch`, `$retainKeys`, `$setElementOrder/x` and `$deleteFromPrimitiveList/x`.

use serde_json::{Map, Value};

use super::order;
use crate::api::ApiError;
use crate::api::schema::{PatchStrategy, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList";
const ORDER_PREFIX: &str = "$setElementOrder";

/// Why a patch does not apply, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    #[error("unable to find api field in struct {structure} for the json field {field:?}")]
    UnknownField { structure: String, field: String },
    #[error("map: {map} does not contain declared merge key: {key}")]
    NoMergeKey { map: String, key: String },
    #[error("unknown patch type: {found} in map: {map}")]
    PatchType { found: String, map: String },
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    #[error("invalid patch format of setElementOrder list")]
    ElementOrder,
    #[error("expected a {wanted}, but received a {found}")]
    ArgType { wanted: &'static str, found: &'static str },
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    Order { patch: String, order: String },
    #[error("lists of lists are not supported")]
    ListOfLists,
    #[error("list element types are not identical: {0}")]
    MixedList(String),
    #[error("cannot merge lists without merge key for type {0}")]
    NoKey(&'static str),
    #[error("merging lists cannot yet be specified in the patch")]
    MergeDirective,
}

impl From<StrategicError> for ApiError {
    fn from(error: StrategicError) -> Self {
        let mut refusal = Self::bad_request(error.to_string());
        if error == StrategicError::ListOfLists {
            refusal.code = 422;
        }
        refusal
    }
}

/// What a map is, for looking up its fields.
#[derive(Clone, Copy)]
pub(super) enum Scheme<'a> {
    Struct(&'a Type),
    /// Every key holds this.
    Map(&'a Shape),
    /// No schema: maps merge, lists are replaced.
    Unknown,
}

impl<'a> Scheme<'a> {
    fn of(shape: &'a Shape) -> Self {
        match shape {
            Shape::Struct(id) => Self::Struct(id.get()),
            Shape::Map(inner) => Self::Map(inner),
            _ => Self::Unknown,
        }
    }

    /// What is at a key, and how it is patched.
    fn at(self, key: &str) -> Result<(Self, Option<&'a Shape>, PatchStrategy), StrategicError> {
        match self {
            Self::Struct(of) => {
                let field = of
                    .field(key)
                    .ok_or_else(|| StrategicError::UnknownField { structure: of.go_name(), field: key.to_owned() })?;
                Ok((Self::of(&field.shape), Some(&field.shape), field.patch))
            }
            Self::Map(inner) => Ok((Self::of(inner), Some(inner), PatchStrategy::default())),
            Self::Unknown => Ok((Self::Unknown, None, PatchStrategy::default())),
        }
    }
}

/// Applies a strategic merge patch to an object of a type.
///
/// # Errors
/// [`StrategicError`]: the patch does not fit the type; a 400.
pub fn apply(current: Value, patch: Value, of: &Type) -> Result<Value, StrategicError> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(StrategicError::ArgType { wanted: "map", found: "non-map" });
    };
    merge_map(current, patch, Scheme::Struct(of)).map(Value::Object)
}

pub(super) fn merge_map(
    mut current: Map<String, Value>,
    mut patch: Map<String, Value>,
    scheme: Scheme<'_>,
) -> Result<Map<String, Value>, StrategicError> {
    match patch.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or("")) {
        Some("replace") => {
            patch.remove(DIRECTIVE);
            return Ok(patch);
        }
        Some("delete") => return Ok(Map::new()),
        Some(found) => {
            return Err(StrategicError::PatchType { found: found.to_owned(), map: go_text(&Value::Object(patch.clone())) });
        }
        None => {}
    }
    retain_keys(&mut current, &mut patch)?;
    set_element_orders(&mut current, &mut patch, scheme)?;
    for (key, change) in patch {
        match key.strip_prefix(DELETE_PREFIX) {
            Some(rest) => {
                let field = rest.strip_prefix('/').ok_or(StrategicError::PrimitiveList)?;
                delete_from_primitive_list(&mut current, field, &change)?;
            }
            None => merge_field(&mut current, key, change, scheme)?,
        }
    }
    Ok(current)
}

fn merge_field(current: &mut Map<String, Value>, key: String, change: Value, scheme: Scheme<'_>) -> Result<(), StrategicError> {
    if change.is_null() {
        current.remove(&key);
        return Ok(());
    }
    let merged = match (current.remove(&key), change) {
        (Some(Value::Object(before)), Value::Object(change)) => {
            let (inner, _, strategy) = scheme.at(&key)?;
            Value::Object(if strategy.is_replace { change } else { merge_map(before, change, inner)? })
        }
        (Some(Value::Array(before)), Value::Array(change)) => {
            let (_, shape, strategy) = scheme.at(&key)?;
            Value::Array(merge_field_list(before, change, shape, strategy)?)
        }
        (_, change) => without_directives(change),
    };
    current.insert(key, merged);
    Ok(())
}

pub(super) fn merge_field_list(
    before: Vec<Value>,
    change: Vec<Value>,
    shape: Option<&Shape>,
    strategy: PatchStrategy,
) -> Result<Vec<Value>, StrategicError> {
    match shape {
        Some(Shape::List(element)) if strategy.is_merge => merge_list(before, change, element, strategy.merge_key),
        _ => Ok(change),
    }
}

/// Merges two lists: scalars by value, maps by their key.
fn merge_list(before: Vec<Value>, change: Vec<Value>, element: &Shape, key: &str) -> Result<Vec<Value>, StrategicError> {
    if before.is_empty() && change.is_empty() {
        return Ok(before);
    }
    if !are_maps(&before, &change)? {
        let mut merged: Vec<Value> = Vec::new();
        for value in before.iter().chain(&change) {
            if !merged.contains(value) {
                merged.push(value.clone());
            }
        }
        return order::normalize(merged, &change, &before, "");
    }
    if key.is_empty() {
        return Err(StrategicError::NoKey("struct"));
    }
    let (before, change) = special_elements(before, change, key)?;
    let mut merged = before.clone();
    for item in &change {
        let value = order::key_of(item, key)?;
        let at = merged.iter().position(|found| found.get(key) == Some(value));
        match at {
            Some(at) => {
                let (Value::Object(found), Value::Object(item)) = (merged[at].take(), item.clone()) else {
                    return Err(StrategicError::ArgType { wanted: "map", found: "scalar" });
                };
                merged[at] = Value::Object(merge_map(found, item, Scheme::of(element))?);
            }
            None => merged.push(without_directives(item.clone())),
        }
    }
    order::normalize(merged, &change, &before, key)
}

/// Whether the elements of two lists are all maps; they may not be mixed.
fn are_maps(left: &[Value], right: &[Value]) -> Result<bool, StrategicError> {
    let mut all = left.iter().chain(right);
    let first = all.clone().next();
    if first.is_some_and(Value::is_array) {
        return Err(StrategicError::ListOfLists);
    }
    let maps = first.is_some_and(Value::is_object);
    match all.find(|value| value.is_object() != maps || value.is_array()) {
        Some(odd) => Err(StrategicError::MixedList(go_text(odd))),
        None => Ok(maps),
    }
}

/// Carries out elements with a `$patch` directive; returns the lists without them.
fn special_elements(mut before: Vec<Value>, change: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>), StrategicError> {
    let mut rest = Vec::with_capacity(change.len());
    let mut is_replaced = false;
    for item in change {
        match item.get(DIRECTIVE).map(|directive| directive.as_str().unwrap_or("")) {
            None => rest.push(item),
            Some("delete") => {
                let value = order::key_of(&item, key)?;
                before.retain(|found| found.get(key) != Some(value));
            }
            Some("replace") => is_replaced = true,
            Some("merge") => return Err(StrategicError::MergeDirective),
            Some(found) => return Err(StrategicError::PatchType { found: found.to_owned(), map: go_text(&item) }),
        }
    }
    if is_replaced { Ok((rest, Vec::new())) } else { Ok((before, rest)) }
}

/// `$retainKeys`: clears what is not in the list; all that the patch sets must be in it.
fn retain_keys(current: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), StrategicError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let keys = keys.as_array().ok_or(StrategicError::RetainKeys)?;
    let is_kept = |key: &str| keys.iter().any(|kept| kept.as_str() == Some(key));
    let is_directive = |key: &str| key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX);
    if patch.iter().any(|(key, value)| !value.is_null() && !is_directive(key) && !is_kept(key)) {
        return Err(StrategicError::RetainKeys);
    }
    current.retain(|key, _| is_kept(key));
    Ok(())
}

/// `$setElementOrder/x`: merges list `x` of the patch, then orders the elements as the directive says.
fn set_element_orders(
    current: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    scheme: Scheme<'_>,
) -> Result<(), StrategicError> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in directives {
        let key = directive[ORDER_PREFIX.len()..].strip_prefix('/').ok_or(StrategicError::ElementOrder)?;
        let order = list(patch.remove(&directive))?.unwrap_or_default();
        let before = list(current.get(key).cloned())?;
        let change = list(patch.remove(key))?;
        let (_, shape, strategy) = scheme.at(key)?;
        order::check(change.as_deref().unwrap_or(&[]), &order, strategy.merge_key)?;
        let merged = match (&before, change) {
            (Some(before), Some(change)) => merge_field_list(before.clone(), change, shape, strategy)?,
            (Some(before), None) => before.clone(),
            (None, Some(change)) => change.into_iter().map(without_directives).collect(),
            (None, None) => continue,
        };
        let before = before.unwrap_or_default();
        current.insert(key.to_owned(), Value::Array(order::normalize(merged, &order, &before, strategy.merge_key)?));
    }
    Ok(())
}

/// A null in a patch counts as absent here, and removes the list below.
fn list(value: Option<Value>) -> Result<Option<Vec<Value>>, StrategicError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(_) => Err(StrategicError::ArgType { wanted: "[]interface {}", found: "scalar" }),
    }
}

fn delete_from_primitive_list(current: &mut Map<String, Value>, key: &str, deleted: &Value) -> Result<(), StrategicError> {
    let deleted = deleted.as_array().ok_or(StrategicError::PrimitiveList)?;
    if let Some(Value::Array(list)) = current.get_mut(key) {
        list.retain(|value| !deleted.contains(value));
    }
    Ok(())
}

/// A part of a patch that is new to the object: directives and nulls in it mean nothing.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let is_directive = |key: &str| {
                key == DIRECTIVE || key == RETAIN_KEYS || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX)
            };
            let kept = map.into_iter().filter(|(key, value)| !value.is_null() && !is_directive(key));
            Value::Object(kept.map(|(key, value)| (key, without_directives(value))).collect())
        }
        Value::Array(list) => {
            let is_deletion = |item: &Value| {
                item.get(DIRECTIVE).is_some_and(|word| {
                    word == "delete" || (word == "replace" && item.as_object().is_some_and(|map| map.len() == 1))
                })
            };
            Value::Array(list.into_iter().filter(|item| !is_deletion(item)).map(without_directives).collect())
        }
        other => other,
    }
}

/// A value as Go prints it with `%v`.
pub(super) fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let entries = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value)));
            format!("map[{}]", entries.collect::<Vec<_>>().join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::api::schema;

    fn patched(kind: &str, current: Value, patch: Value) -> Result<Value, StrategicError> {
        apply(current, patch, schema::get(&format!("io.k8s.api.{kind}")).unwrap())
    }

    /// Each row is what stands below `spec` before, the patch of `spec`, and what stands there after.
    #[test]
    fn patches_pods() {
        let two = json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]});
        for (current, patch, result) in [
            (
                two.clone(),
                json!({"containers": [{"name": "b", "image": "2"}]}),
                json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]}),
            ),
            (
                two.clone(),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b", "image": "1"}]}),
            ),
            (two.clone(), json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}), json!({"containers": [{"name": "c"}]})),
            (
                two.clone(),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "image": "3"}]}),
                json!({"containers": [{"name": "b", "image": "1"}, {"name": "c", "image": "3"}, {"name": "a", "image": "1"}]}),
            ),
            (two.clone(), json!({"containers": null}), json!({})),
            (two.clone(), json!({"$patch": "replace", "nodeName": "n"}), json!({"nodeName": "n"})),
            (two.clone(), json!({"$patch": "delete"}), json!({})),
            (
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"a": null, "b": "2"}}),
                json!({"nodeSelector": {"b": "2"}}),
            ),
            (
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "b"}]}),
                json!({"tolerations": [{"key": "b"}]}),
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
            ),
            (
                json!({}),
                json!({"containers": [{"name": "a", "image": null, "$patch": "delete"}, {"name": "b", "image": null}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "x"}]}]}),
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "y"}, {"containerPort": 81}]}]}),
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "y"}, {"containerPort": 81}]}]}),
            ),
        ] {
            let text = patch.to_string();
            assert_eq!(
                patched("core.v1.Pod", json!({"spec": current}), json!({"spec": patch})),
                Ok(json!({"spec": result})),
                "{text}"
            );
        }
    }

    #[test]
    fn patches_lists_of_scalars() {
        for (current, patch, result) in [
            (json!(["a", "b"]), json!({"finalizers": ["c", "a"]}), json!(["c", "a", "b"])),
            (json!(["a", "b"]), json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!(["b"])),
            (json!(["a", "b"]), json!({"$setElementOrder/finalizers": ["b", "a"]}), json!(["b", "a"])),
        ] {
            let patched = patched("core.v1.Pod", json!({"metadata": {"finalizers": current}}), json!({"metadata": patch}));
            let mut found = patched.unwrap()["metadata"]["finalizers"].as_array().unwrap().clone();
            let mut wanted = result.as_array().unwrap().clone();
            if patch.get("finalizers").is_some() {
                found.sort_by_key(Value::to_string);
                wanted.sort_by_key(Value::to_string);
            }
            assert_eq!(found, wanted, "{patch}");
        }
    }

    #[test]
    fn refuses_in_upstreams_words() {
        let pod = json!({"spec": {"containers": [{"name": "a"}], "nodeSelector": {}}, "metadata": {"labels": {"a": "b"}}});
        for (patch, text) in [
            (json!({"spec": {"containers": [{"image": "x"}]}}), "map: map[image:x] does not contain declared merge key: name"),
            (json!({"spec": {"$patch": "what"}}), "unknown patch type: what in map: map[$patch:what]"),
            (json!({"spec": {"$retainKeys": ["a"], "nodeName": "x"}}), "invalid patch format of retainKeys"),
            (json!({"spec": {"$deleteFromPrimitiveList": []}}), "invalid patch format of primitive list"),
            (json!({"spec": {"containers": ["a"]}}), "list element types are not identical: a"),
        ] {
            assert_eq!(patched("core.v1.Pod", pod.clone(), patch).unwrap_err().to_string(), text);
        }
        let unknown = patched("core.v1.Pod", json!({"spec": {"foo": {}}}), json!({"spec": {"foo": {"a": 1}}}));
        assert_eq!(unknown.unwrap_err().to_string(), "unable to find api field in struct v1.PodSpec for the json field \"foo\"");
    }

    fn containers() -> impl Strategy<Value = Vec<(String, u8)>> {
        prop::collection::btree_map("[a-e]", any::<u8>(), 0..5).prop_map(|map| map.into_iter().collect::<Vec<_>>()).prop_shuffle()
    }

    fn spec(containers: &[(String, u8)]) -> Value {
        let list: Vec<_> = containers.iter().map(|(name, image)| json!({"name": name, "image": image.to_string()})).collect();
        json!({"spec": {"containers": list}})
    }

    proptest! {
        #[test]
        fn a_patch_is_idempotent_and_wins(current in containers(), patch in containers()) {
            let once = patched("core.v1.Pod", spec(&current), spec(&patch)).unwrap();
            prop_assert_eq!(&patched("core.v1.Pod", once.clone(), spec(&patch)).unwrap(), &once);
            let merged = once["spec"]["containers"].as_array().unwrap();
            for (name, image) in &patch {
                let found = merged.iter().find(|item| item["name"] == name.as_str()).unwrap();
                prop_assert_eq!(found["image"].as_str().unwrap(), image.to_string());
            }
            for (name, _) in &current {
                prop_assert_eq!(merged.iter().filter(|item| item["name"] == name.as_str()).count(), 1);
            }
        }

        #[test]
        fn the_order_list_gives_the_order(current in containers(), wanted in containers()) {
            let order: Vec<_> = wanted.iter().map(|(name, _)| json!({"name": name})).collect();
            let mut patch = spec(&wanted);
            patch["spec"]["$setElementOrder/containers"] = Value::Array(order);
            let merged = patched("core.v1.Pod", spec(&current), patch).unwrap();
            let names: Vec<_> = merged["spec"]["containers"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect();
            let in_order: Vec<_> = names.into_iter().filter(|name| wanted.iter().any(|(known, _)| known == name)).collect();
            prop_assert_eq!(in_order, wanted.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
        }
    }
}
