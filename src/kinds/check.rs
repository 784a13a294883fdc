//! Checks that many kinds share, each pushing what is wrong to a list (upstream `apimachinery/pkg/api/validation`,
//! `apis/meta/v1/validation` and `pkg/apis/core/validation`).

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::names;

/// What is wrong, in the order it was found.
pub type Errors = Vec<FieldError>;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";

/// The text of an optional field, "" if absent.
pub fn str_of(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("")
}

/// Refuses a text for each message of a rule of [`names`].
pub fn rule(errors: &mut Errors, path: &Path, text: &str, rule: impl Fn(&str) -> Vec<String>) {
    errors.extend(rule(text).into_iter().map(|why| FieldError::invalid(path.clone(), text, why)));
}

/// A text that must be there; returns whether it is.
pub fn required(errors: &mut Errors, path: &Path, text: &str) -> bool {
    if text.is_empty() {
        errors.push(FieldError::required(path.clone(), ""));
    }
    !text.is_empty()
}

/// A text that must be there and follow a rule.
pub fn required_rule(errors: &mut Errors, path: &Path, text: &str, check: impl Fn(&str) -> Vec<String>) {
    if required(errors, path, text) {
        rule(errors, path, text, check);
    }
}

/// A text that must be one of a set.
pub fn one_of(errors: &mut Errors, path: &Path, text: &str, supported: &[&str]) {
    if !supported.contains(&text) {
        errors.push(FieldError::not_supported(path.clone(), text, supported));
    }
}

/// A text that must be there and be one of a set.
pub fn required_one_of(errors: &mut Errors, path: &Path, text: &str, supported: &[&str]) {
    if required(errors, path, text) {
        one_of(errors, path, text, supported);
    }
}

/// A number that must not be negative.
pub fn not_negative(errors: &mut Errors, path: &Path, number: i64) {
    if number < 0 {
        errors.push(FieldError::invalid(path.clone(), number, NOT_NEGATIVE));
    }
}

/// A number that, if there, must not be negative.
pub fn maybe_not_negative(errors: &mut Errors, path: &Path, number: Option<impl Into<i64>>) {
    if let Some(number) = number {
        not_negative(errors, path, number.into());
    }
}

/// A port number.
pub fn port(errors: &mut Errors, path: &Path, number: i64) {
    errors.extend(names::port_number(number).into_iter().map(|why| FieldError::invalid(path.clone(), number, why)));
}

/// A port by number or name.
pub fn port_or_name(errors: &mut Errors, path: &Path, port: &IntOrString) {
    match port {
        IntOrString::Int(number) => self::port(errors, path, i64::from(*number)),
        IntOrString::String(name) => rule(errors, path, name, names::port_name),
    }
}

/// A text that may stand only once in its list.
pub fn unique<'a>(errors: &mut Errors, path: &Path, seen: &mut HashSet<&'a str>, text: &'a str) {
    if !seen.insert(text) {
        errors.push(FieldError::duplicate(path.clone(), text));
    }
}

/// A field that may not change.
pub fn immutable<T: Serialize>(errors: &mut Errors, path: &Path, new: &T, old: &T) {
    let new = meaning(new);
    if new != meaning(old) {
        errors.push(FieldError::invalid(path.clone(), new, IMMUTABLE));
    }
}

/// Whether two values mean the same: absent, null and empty are one, as in upstream's `Semantic.DeepEqual`.
pub fn same<T: Serialize>(one: &T, other: &T) -> bool {
    meaning(one) == meaning(other)
}

/// A value without its nulls and empty lists and maps.
pub fn meaning<T: Serialize>(value: &T) -> Value {
    fn strip(value: Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(
                map.into_iter().map(|(key, value)| (key, strip(value))).filter(|(_, value)| !is_empty(value)).collect(),
            ),
            Value::Array(list) => Value::Array(list.into_iter().map(strip).collect()),
            plain => plain,
        }
    }
    fn is_empty(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        }
    }
    strip(serde_json::to_value(value).unwrap_or(Value::Null))
}

/// The paths at which two values differ, lists by position; at most a dozen are named.
pub fn differences<T: Serialize>(new: &T, old: &T) -> Vec<String> {
    fn walk(path: &str, new: &Value, old: &Value, found: &mut Vec<String>) {
        if new == old || found.len() >= 12 {
            return;
        }
        match (new, old) {
            (Value::Object(new), Value::Object(old)) => {
                let keys: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).collect();
                for key in keys {
                    let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&below, new.get(key).unwrap_or(&Value::Null), old.get(key).unwrap_or(&Value::Null), found);
                }
            }
            (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
                for (index, (new, old)) in new.iter().zip(old).enumerate() {
                    walk(&format!("{path}[{index}]"), new, old, found);
                }
            }
            _ => found.push(format!("  {path}: {old} -> {new}")),
        }
    }
    let mut found = Vec::new();
    walk("", &meaning(new), &meaning(old), &mut found);
    found
}

/// Labels, or a map of that form: keys are qualified names, values label values.
pub fn labels(errors: &mut Errors, path: &Path, labels: Option<&BTreeMap<String, String>>) {
    for (key, value) in labels.into_iter().flatten() {
        rule(errors, path, key, names::qualified_name);
        rule(errors, path, value, names::label_value);
    }
}

/// Annotations: keys are qualified names, whatever their case.
pub fn annotations(errors: &mut Errors, path: &Path, annotations: Option<&BTreeMap<String, String>>) {
    const TOTAL_MAX: usize = 256 * 1024;
    let mut total = 0;
    for (key, value) in annotations.into_iter().flatten() {
        let lower = key.to_lowercase();
        errors.extend(names::qualified_name(&lower).into_iter().map(|why| FieldError::invalid(path.clone(), key.as_str(), why)));
        total += key.len() + value.len();
    }
    if total > TOTAL_MAX {
        errors.push(FieldError::too_long(path.clone(), TOTAL_MAX));
    }
}

/// A label selector.
pub fn label_selector(errors: &mut Errors, path: &Path, selector: &LabelSelector) {
    labels(errors, &path.child("matchLabels"), selector.match_labels.as_ref());
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        selector_requirement(errors, &path.child("matchExpressions").index(index), requirement);
    }
}

fn selector_requirement(errors: &mut Errors, path: &Path, requirement: &LabelSelectorRequirement) {
    let values = requirement.values.as_deref().unwrap_or_default();
    match requirement.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(FieldError::required(path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(FieldError::forbidden(
                path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.push(FieldError::invalid(path.child("operator"), other, "not a valid selector operator")),
    }
    rule(errors, &path.child("key"), &requirement.key, names::qualified_name);
    for (index, value) in values.iter().enumerate() {
        rule(errors, &path.child("values").index(index), value, names::label_value);
    }
}

/// Whether a selector selects everything: it asks for nothing.
pub fn is_empty_selector(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty) && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// Whether labels satisfy a selector.
pub fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let pairs = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    pairs
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = || value.is_some_and(|value| requirement.values.iter().flatten().any(|listed| listed == value));
            match requirement.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// A number or a percentage that must not be negative; returns the percentage if it is one.
pub fn number_or_percent(errors: &mut Errors, path: &Path, value: &IntOrString) {
    match value {
        IntOrString::Int(number) => not_negative(errors, path, i64::from(*number)),
        IntOrString::String(text) => {
            if percent(text).is_none() {
                errors.push(FieldError::invalid(
                    path.clone(),
                    text.as_str(),
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                ));
            }
        }
    }
}

/// The number before the sign of a percentage.
pub fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) { None } else { digits.parse().ok() }
}

/// A percentage must not exceed 100.
pub fn at_most_100_percent(errors: &mut Errors, path: &Path, value: &IntOrString) {
    if let IntOrString::String(text) = value
        && percent(text).is_some_and(|percent| percent > 100)
    {
        errors.push(FieldError::invalid(path.clone(), text.as_str(), "must not be greater than 100%"));
    }
}

/// Whether a number or percentage is zero.
pub fn is_zero(value: &IntOrString) -> bool {
    match value {
        IntOrString::Int(number) => *number == 0,
        IntOrString::String(text) => percent(text) == Some(0),
    }
}

/// An IP address.
pub fn ip(errors: &mut Errors, path: &Path, text: &str) {
    if text.parse::<std::net::IpAddr>().is_err() {
        errors.push(FieldError::invalid(path.clone(), text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
}

/// An IP network.
pub fn cidr(errors: &mut Errors, path: &Path, text: &str) {
    if text.parse::<ipnet::IpNet>().is_err() {
        errors.push(FieldError::invalid(path.clone(), text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
    }
}

/// Whether an optional list is absent or empty.
pub fn is_blank<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}
