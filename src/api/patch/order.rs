//! The order of elements in a list that a strategic merge patch merged.
//!
//! Precedence: the order list (or the patch), then the order in the live list. The relative order of the elements that only the
//! live list has is kept.

use serde_json::Value;

use super::strategic::{StrategicError, go_text};

/// The value of the merge key of an element.
pub(super) fn key_of<'a>(item: &'a Value, key: &str) -> Result<&'a Value, StrategicError> {
    let map = item.as_object().ok_or(StrategicError::ArgType { wanted: "map", found: "scalar" })?;
    map.get(key).ok_or_else(|| StrategicError::NoMergeKey { map: go_text(item), key: key.to_owned() })
}

/// Orders a merged list: what is in `wanted` in that order, and the rest woven in where the live list had it.
pub(super) fn normalize(merged: Vec<Value>, wanted: &[Value], live: &[Value], key: &str) -> Result<Vec<Value>, StrategicError> {
    let (mut listed, mut rest) = (Vec::new(), Vec::new());
    for item in merged {
        match position(wanted, &item, key)? {
            Some(at) => listed.push((at, item)),
            None => rest.push((position(live, &item, key)?.unwrap_or(usize::MAX), item)),
        }
    }
    listed.sort_by_key(|(at, _)| *at);
    rest.sort_by_key(|(at, _)| *at);
    let listed: Vec<_> = listed.into_iter().map(|(_, item)| Ok((position(live, &item, key)?, item))).collect::<Result<_, _>>()?;
    Ok(weave(rest, listed))
}

/// Inserts each left element before the first right element, from the place of the last insertion on, that stands behind it in
/// the live list.
fn weave(left: Vec<(usize, Value)>, right: Vec<(Option<usize>, Value)>) -> Vec<Value> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let mut right = right.into_iter().peekable();
    for (at, item) in left {
        while let Some((_, earlier)) = right.next_if(|(live, _)| live.is_none_or(|live| live <= at)) {
            merged.push(earlier);
        }
        merged.push(item);
    }
    merged.extend(right.map(|(_, item)| item));
    merged
}

fn position(list: &[Value], item: &Value, key: &str) -> Result<Option<usize>, StrategicError> {
    if key.is_empty() {
        return Ok(list.iter().position(|found| found == item));
    }
    let value = key_of(item, key)?;
    Ok(list.iter().position(|found| found.get(key) == Some(value)))
}

/// Checks that the elements of a patch stand in the order that the order list has, and are all in it.
pub(super) fn check(patch: &[Value], order: &[Value], key: &str) -> Result<(), StrategicError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut order_left = order.iter();
    for item in patch.iter().filter(|item| item.get("$patch").is_none()) {
        let is_same = |found: &Value| {
            if key.is_empty() { found == item } else { found.get(key).is_some() && found.get(key) == item.get(key) }
        };
        if !key.is_empty() {
            key_of(item, key)?;
        }
        if !order_left.by_ref().any(is_same) {
            let text = |list: &[Value]| go_text(&Value::Array(list.to_vec()));
            return Err(StrategicError::Order { patch: text(patch), order: text(order) });
        }
    }
    Ok(())
}
