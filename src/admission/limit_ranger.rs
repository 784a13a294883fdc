//! LimitRanger: a namespace's LimitRanges fill in the requests and limits that a pod leaves out, and bound those it has
//! (`plugin/pkg/admission/limitranger`).

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::{Context, Plugin};
use crate::api::quantity::Quantity;
use crate::api::{ApiError, Object};
use crate::registry::Operation;

const BUCKET: &str = "core/limitranges";
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The plugin.
pub(super) struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn mutate(&self, context: &mut Context<'_>, pod: &mut Object, _old: Option<&Object>) -> Result<(), ApiError> {
        if !context.is_core("Pod") || context.attributes.operation != Operation::Create {
            return Ok(());
        }
        for range in context.reader.list(BUCKET, context.attributes.namespace) {
            for item in items(&range).filter(|item| item["type"] == "Container") {
                fill(pod, item);
            }
        }
        Ok(())
    }

    async fn validate(&self, context: &mut Context<'_>, object: Option<&Object>, _old: Option<&Object>) -> Result<(), ApiError> {
        let Some(object) = object else { return Ok(()) };
        let (is_pod, is_claim) = (context.is_core("Pod"), context.is_core("PersistentVolumeClaim"));
        if !(is_claim || is_pod && context.attributes.operation == Operation::Create) {
            return Ok(());
        }
        let mut errors = Vec::new();
        for range in context.reader.list(BUCKET, context.attributes.namespace) {
            for item in items(&range) {
                match item["type"].as_str().unwrap_or("") {
                    "Container" if is_pod => containers(object).for_each(|one| check(item, &one["resources"], &mut errors)),
                    "Pod" if is_pod => check(item, &pod_resources(object), &mut errors),
                    "PersistentVolumeClaim" if is_claim => {
                        let requests = object.get(&["spec", "resources", "requests"]).cloned().unwrap_or_default();
                        // A claim has no limits: its request stands for both.
                        check(item, &json!({"requests": requests, "limits": requests}), &mut errors);
                    }
                    _ => {}
                }
            }
        }
        match errors.as_slice() {
            [] => Ok(()),
            [only] => Err(context.forbidden(only)),
            many => Err(context.forbidden(format_args!("[{}]", many.join(", ")))),
        }
    }
}

fn items(range: &Object) -> impl Iterator<Item = &Value> {
    range.get(&["spec", "limits"]).and_then(Value::as_array).into_iter().flatten()
}

fn containers(pod: &Object) -> impl Iterator<Item = &Value> {
    ["containers", "initContainers"].into_iter().flat_map(|list| pod.get(&["spec", list]).and_then(Value::as_array)).flatten()
}

/// Fills in the defaults of one LimitRange item, and says so in an annotation.
fn fill(pod: &mut Object, item: &Value) {
    let mut notes = Vec::new();
    for list in ["containers", "initContainers"] {
        let containers = pod.0.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        let sort = if list == "containers" { "container" } else { "init container" };
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or("").to_owned();
            for (field, defaults, word) in [("requests", "defaultRequest", "request"), ("limits", "default", "limit")] {
                let set = fill_one(container, field, &item[defaults]);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {sort} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        pod.set(&["metadata", "annotations", ANNOTATION], format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
}

fn fill_one(container: &mut Value, field: &str, defaults: &Value) -> Vec<String> {
    let (Some(defaults), Some(container)) = (defaults.as_object(), container.as_object_mut()) else { return Vec::new() };
    let resources = container.entry("resources").or_insert_with(|| Value::Object(Map::new()));
    let Some(resources) = resources.as_object_mut() else { return Vec::new() };
    let missing: Vec<(&String, &Value)> =
        defaults.iter().filter(|(name, _)| resources.get(field).is_none_or(|given| given.get(name.as_str()).is_none())).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let given = resources.entry(field).or_insert_with(|| Value::Object(Map::new()));
    let Some(given) = given.as_object_mut() else { return Vec::new() };
    for (name, value) in &missing {
        given.insert((*name).clone(), (*value).clone());
    }
    missing.into_iter().map(|(name, _)| name.clone()).collect()
}

fn quantity(resources: &Value, field: &str, name: &str) -> Option<(i128, String)> {
    let text = match &resources[field][name] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Quantity::parse(&text).ok().map(|quantity| (quantity.nano_value(), text))
}

/// Checks requests and limits against the bounds of one item.
fn check(item: &Value, resources: &Value, errors: &mut Vec<String>) {
    let sort = item["type"].as_str().unwrap_or("");
    for bound in ["min", "max", "maxLimitRequestRatio"] {
        for name in item[bound].as_object().into_iter().flatten().map(|(name, _)| name.as_str()) {
            let Some(enforced) = quantity(item, bound, name) else { continue };
            let (request, limit) = (quantity(resources, "requests", name), quantity(resources, "limits", name));
            let wrong = match bound {
                "min" => below(&enforced, request.as_ref(), limit.as_ref()).map(|why| ("minimum", why)),
                "max" => above(&enforced, request.as_ref(), limit.as_ref()).map(|why| ("maximum", why)),
                _ => {
                    errors.extend(ratio(name, sort, &enforced, request.as_ref(), limit.as_ref()));
                    None
                }
            };
            errors.extend(wrong.map(|(word, why)| format!("{word} {name} usage per {sort} is {}{why}", enforced.1)));
        }
    }
}

type Amount = (i128, String);

fn below(enforced: &Amount, request: Option<&Amount>, limit: Option<&Amount>) -> Option<String> {
    match (request, limit) {
        (None, _) => Some(".  No request is specified".to_owned()),
        (Some(request), _) if request.0 < enforced.0 => Some(format!(", but request is {}", request.1)),
        (_, Some(limit)) if limit.0 < enforced.0 => Some(format!(", but limit is {}", limit.1)),
        _ => None,
    }
}

fn above(enforced: &Amount, request: Option<&Amount>, limit: Option<&Amount>) -> Option<String> {
    match (request, limit) {
        (_, None) => Some(".  No limit is specified".to_owned()),
        (_, Some(limit)) if limit.0 > enforced.0 => Some(format!(", but limit is {}", limit.1)),
        (Some(request), _) if request.0 > enforced.0 => Some(format!(", but request is {}", request.1)),
        _ => None,
    }
}

fn ratio(name: &str, sort: &str, enforced: &Amount, request: Option<&Amount>, limit: Option<&Amount>) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {sort} is {}", enforced.1);
    let Some(request) = request.filter(|request| request.0 != 0) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = limit.filter(|limit| limit.0 != 0) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let (provided, allowed) = (limit.0 as f64 / request.0 as f64, enforced.0 as f64 / 1e9);
    (provided > allowed).then(|| format!("{head}, but provided ratio is {provided:.6}"))
}

/// What a pod asks for as a whole: the sum of its containers, or its largest init container.
fn pod_resources(pod: &Object) -> Value {
    let mut whole = json!({});
    for field in ["requests", "limits"] {
        let mut sums: std::collections::BTreeMap<String, i128> = std::collections::BTreeMap::new();
        let list = |list: &str| pod.get(&["spec", list]).and_then(Value::as_array).cloned().unwrap_or_default();
        let amounts = |container: &Value| -> Vec<(String, i128)> {
            let names = container["resources"][field].as_object().into_iter().flatten().map(|(name, _)| name.clone());
            names.filter_map(|name| Some((name.clone(), quantity(&container["resources"], field, &name)?.0))).collect()
        };
        for (name, amount) in list("containers").iter().flat_map(amounts) {
            *sums.entry(name).or_default() += amount;
        }
        for (name, amount) in list("initContainers").iter().flat_map(amounts) {
            let sum = sums.entry(name).or_default();
            *sum = (*sum).max(amount);
        }
        let texts = sums.into_iter().map(|(name, nano)| (name, Value::from(text_of(nano))));
        whole[field] = Value::Object(texts.collect());
    }
    whole
}

/// A quantity of so many billionths.
fn text_of(nano: i128) -> String {
    match (nano % 1_000_000_000, nano % 1_000_000) {
        (0, _) => (nano / 1_000_000_000).to_string(),
        (_, 0) => format!("{}m", nano / 1_000_000),
        _ => format!("{nano}n"),
    }
}
