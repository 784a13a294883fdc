//! LimitRange: bounds and defaults of resources in a namespace.

use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};

use super::pod_spec::defaults::quantities;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Column;
use crate::api::names;
use crate::api::quantity::Quantity;
use crate::kinds::check::{Errors, required_rule, unique};
use crate::kinds::print::{CREATED_AT, created_at, name};
use crate::kinds::typed::Definition;

/// The kind.
pub static LIMIT_RANGE: Definition<LimitRange> = Definition {
    columns: &[Column::NAME, CREATED_AT],
    row: Some(|range, _now| vec![name(&range.metadata), created_at(&range.metadata)]),
    default: Some(default),
    validate: Some(validate),
    ..Definition::namespaced("io.k8s.api.core.v1.LimitRange", "core/limitranges", "limitrange").short(&["limits"])
};

/// For containers, a default limit comes from the maximum, a default request from the default limit, else from the minimum.
fn default(range: &mut LimitRange) {
    for item in range.spec.iter_mut().flat_map(|spec| &mut spec.limits) {
        for list in
            [&mut item.max, &mut item.min, &mut item.default, &mut item.default_request, &mut item.max_limit_request_ratio]
        {
            quantities(list);
        }
        if item.type_ != "Container" {
            continue;
        }
        let fill = |into: &mut Option<std::collections::BTreeMap<_, _>>, from: &Option<std::collections::BTreeMap<String, _>>| {
            for (resource, amount) in from.iter().flatten() {
                into.get_or_insert_default().entry(String::clone(resource)).or_insert_with(|| Clone::clone(amount));
            }
        };
        fill(&mut item.default, &item.max);
        fill(&mut item.default_request, &item.default);
        fill(&mut item.default_request, &item.min);
    }
}

fn validate(range: &LimitRange) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (index, item) in range.spec.iter().flat_map(|spec| &spec.limits).enumerate() {
        let path = Path::new("spec").child("limits").index(index);
        required_rule(&mut errors, &path.child("type"), &item.type_, names::qualified_name);
        unique(&mut errors, &path.child("type"), &mut seen, &item.type_);
        bounds(&mut errors, &path, item);
    }
    errors
}

fn bounds(errors: &mut Errors, path: &Path, item: &LimitRangeItem) {
    let lists = [("min", &item.min), ("defaultRequest", &item.default_request), ("default", &item.default), ("max", &item.max)];
    let amount = |list: &Option<std::collections::BTreeMap<String, _>>, resource: &String| {
        list.as_ref().and_then(|list| list.get(resource)).and_then(|amount| Quantity::try_from(amount).ok())
    };
    for (place, (field, list)) in lists.iter().enumerate() {
        for resource in list.iter().flatten().map(|(resource, _)| resource) {
            for (above, bound) in &lists[place + 1..] {
                let (Some(low), Some(high)) = (amount(list, resource), amount(bound, resource)) else { continue };
                if low > high {
                    let why = format!("{field} value {low} is greater than {above} value {high}");
                    errors.push(FieldError::invalid(path.child(field).key(resource), low.to_string(), why));
                }
            }
        }
    }
}
