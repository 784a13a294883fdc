//! Checks of the policies of a job: which failures fail it, and which successes suffice.

use std::collections::HashSet;

use k8s_openapi::api::batch::v1::{
    JobSpec, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
    SuccessPolicyRule,
};

use crate::api::field::{FieldError, Path};
use crate::api::names;
use crate::kinds::check::{Errors, not_negative, one_of, required_rule, str_of};

/// Most rules of a policy, and most patterns of a rule.
const RULES: usize = 20;
const EXIT_CODES: usize = 255;
const INDEXES_BYTES: usize = 64 * 1024;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

fn quoted(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn choice(errors: &mut Errors, path: &Path, text: &str, supported: &[&str]) {
    if text.is_empty() {
        errors.push(FieldError::required(path.clone(), quoted(supported)));
    } else {
        one_of(errors, path, text, supported);
    }
}

fn at_most(errors: &mut Errors, path: &Path, count: usize, max: usize) {
    if count > max {
        errors.push(FieldError::too_many(path.clone(), count, max));
    }
}

/// Checks `podFailurePolicy`.
pub(super) fn failure(errors: &mut Errors, path: &Path, spec: &JobSpec) {
    let Some(policy) = &spec.pod_failure_policy else { return };
    let path = path.child("rules");
    at_most(errors, &path, policy.rules.len(), RULES);
    let pod = spec.template.spec.as_ref();
    let containers = pod.into_iter().flat_map(|pod| pod.containers.iter().chain(pod.init_containers.iter().flatten()));
    let containers: HashSet<&str> = containers.map(|container| container.name.as_str()).collect();
    for (index, rule) in policy.rules.iter().enumerate() {
        failure_rule(errors, &path.index(index), rule, spec, &containers);
    }
}

fn failure_rule(errors: &mut Errors, path: &Path, rule: &PodFailurePolicyRule, spec: &JobSpec, containers: &HashSet<&str>) {
    let at = path.child("action");
    choice(errors, &at, &rule.action, &ACTIONS);
    if rule.action == "FailIndex" && spec.backoff_limit_per_index.is_none() {
        errors.push(FieldError::invalid(at, "FailIndex", "requires the backoffLimitPerIndex to be set"));
    }
    let conditions = rule.on_pod_conditions.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        exit_codes(errors, &path.child("onExitCodes"), codes, containers);
    }
    let at = path.child("onPodConditions");
    at_most(errors, &at, conditions.len(), RULES);
    for (index, pattern) in conditions.iter().enumerate() {
        condition(errors, &at.index(index), pattern);
    }
    let why = match (rule.on_exit_codes.is_some(), conditions.is_empty()) {
        (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
        (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
        _ => return,
    };
    errors.push(FieldError::invalid(path.clone(), serde_json::to_value(rule).unwrap_or_default(), why));
}

fn exit_codes(errors: &mut Errors, path: &Path, codes: &PodFailurePolicyOnExitCodesRequirement, containers: &HashSet<&str>) {
    choice(errors, &path.child("operator"), &codes.operator, &["In", "NotIn"]);
    if let Some(name) = codes.container_name.as_deref().filter(|name| !containers.contains(name)) {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(path.child("containerName"), name, why));
    }
    let at = path.child("values");
    if codes.values.is_empty() {
        errors.push(FieldError::invalid(at.clone(), Vec::<i32>::new(), "at least one value is required"));
    }
    at_most(errors, &at, codes.values.len(), EXIT_CODES);
    let mut seen = HashSet::new();
    for (index, code) in codes.values.iter().enumerate() {
        if codes.operator == "In" && *code == 0 {
            errors.push(FieldError::invalid(at.index(index), 0, "must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            errors.push(FieldError::duplicate(at.index(index), *code));
        }
    }
    if !codes.values.is_sorted() {
        errors.push(FieldError::invalid(at, codes.values.clone(), "must be ordered"));
    }
}

fn condition(errors: &mut Errors, path: &Path, pattern: &PodFailurePolicyOnPodConditionsPattern) {
    required_rule(errors, &path.child("type"), &pattern.type_, names::qualified_name);
    choice(errors, &path.child("status"), str_of(&pattern.status), &["False", "True", "Unknown"]);
}

/// Checks `successPolicy` of an Indexed job.
pub(super) fn success(errors: &mut Errors, path: &Path, spec: &JobSpec) {
    let Some(policy) = &spec.success_policy else { return };
    let path = path.child("rules");
    if policy.rules.is_empty() {
        let why = "at least one rules must be specified when the successPolicy is specified";
        errors.push(FieldError::required(path.clone(), why));
    }
    at_most(errors, &path, policy.rules.len(), RULES);
    for (index, rule) in policy.rules.iter().enumerate() {
        success_rule(errors, &path.index(index), rule, spec.completions.unwrap_or(0));
    }
}

fn success_rule(errors: &mut Errors, path: &Path, rule: &SuccessPolicyRule, completions: i32) {
    if rule.succeeded_count.is_none() && rule.succeeded_indexes.is_none() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(path.clone(), why));
    }
    let mut total = None;
    if let Some(text) = &rule.succeeded_indexes {
        let at = path.child("succeededIndexes");
        if text.len() > INDEXES_BYTES {
            errors.push(FieldError::too_long(at.clone(), INDEXES_BYTES));
        }
        match indexes(text, completions) {
            Ok(count) => total = Some(count),
            Err(why) => {
                errors.push(FieldError::invalid(at, text.as_str(), format!("error parsing succeededIndexes: {why}")));
                total = Some(0);
            }
        }
    }
    let Some(count) = rule.succeeded_count else { return };
    let at = path.child("succeededCount");
    not_negative(errors, &at, i64::from(count));
    if count > completions {
        let why = format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(FieldError::invalid(at.clone(), count, why));
    }
    if let Some(total) = total.filter(|total| count > *total) {
        let why =
            format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)");
        errors.push(FieldError::invalid(at, count, why));
    }
}

/// How many indexes a text like `0,2-5` names.
pub(super) fn indexes(text: &str, completions: i32) -> Result<i32, String> {
    let (mut total, mut last) = (0, None::<i32>);
    let number = |text: &str| -> Result<i32, String> {
        let index = text.parse().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if index >= completions { Err(format!("too large index: {text:?}")) } else { Ok(index) }
    };
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let ends: Vec<&str> = part.split('-').collect();
        if ends.len() > 2 {
            let why = "violates the requirement that an index interval can have at most two parts separated by '-'";
            return Err(format!("the fragment {part:?} {why}"));
        }
        let first = number(ends[0])?;
        if let Some(previous) = last.filter(|previous| *previous >= first) {
            return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
        }
        let end = match ends.get(1) {
            Some(end) => number(end)?,
            None => first,
        };
        if ends.len() == 2 && first >= end {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn errors(check: fn(&mut Errors, &Path, &JobSpec), spec: Value) -> Vec<String> {
        let mut all = json!({"completions": 4, "template": {"spec": {"containers": [{"name": "c"}]}}});
        json_patch::merge(&mut all, &spec);
        let mut errors = Vec::new();
        check(&mut errors, &Path::new("p"), &serde_json::from_value(all).unwrap());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn failure_policies() {
        let check = |rule: Value| errors(failure, json!({"podFailurePolicy": {"rules": [rule]}}));
        assert!(
            check(json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]})).is_empty()
        );
        let rule = json!({"action": "FailIndex", "onExitCodes": {"containerName": "x", "operator": "In", "values": [3, 0, 3]}});
        assert_eq!(
            check(rule),
            [
                "p.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                "p.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names \
                 in the pod template",
                "p.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
                "p.rules[0].onExitCodes.values[2]: Duplicate value: 3",
                "p.rules[0].onExitCodes.values: Invalid value: [3,0,3]: must be ordered",
            ]
        );
    }

    #[test]
    fn success_policies() {
        let check = |rules: Value| errors(success, json!({"successPolicy": {"rules": rules}}));
        assert!(check(json!([{"succeededIndexes": "0,2-3", "succeededCount": 2}])).is_empty());
        assert_eq!(check(json!([]))[0].split(": ").nth(1), Some("Required value"));
        assert_eq!(
            check(
                json!([{"succeededIndexes": "0-1", "succeededCount": 3}, {"succeededIndexes": "2-4"}, {"succeededIndexes": "2,1"}])
            ),
            [
                "p.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the \
                 specified succeededIndexes field)",
                "p.rules[1].succeededIndexes: Invalid value: \"2-4\": error parsing succeededIndexes: too large index: \"4\"",
                "p.rules[2].succeededIndexes: Invalid value: \"2,1\": error parsing succeededIndexes: non-increasing order, \
                 previous: 2, current: 1",
            ]
        );
    }
}
