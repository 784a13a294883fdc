//! What a `PolicyRule` allows, and whether rules cover others. Follows upstream's `pkg/apis/rbac/v1/evaluation_helpers.go` and
//! `component-helpers/auth/rbac/validation/policy_comparator.go`.

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;

use crate::api::{ApiError, Object};
use crate::auth::Attributes;

const ALL: &str = "*";

fn list(texts: Option<&Vec<String>>) -> &[String] {
    texts.map_or(&[], Vec::as_slice)
}

fn has(texts: Option<&Vec<String>>, text: &str) -> bool {
    list(texts).iter().any(|one| one == ALL || one == text)
}

/// The rules of a Role or ClusterRole.
///
/// # Errors
/// 400 when they do not decode.
pub fn of(role: &Object) -> Result<Vec<PolicyRule>, ApiError> {
    match role.0.get("rules").filter(|rules| !rules.is_null()) {
        None => Ok(Vec::new()),
        Some(rules) => Vec::deserialize(rules).map_err(|error| ApiError::bad_request(format!("json: cannot unmarshal: {error}"))),
    }
}

/// Whether a rule allows a request.
pub fn allows(rule: &PolicyRule, wanted: &Attributes) -> bool {
    if !rule.verbs.iter().any(|verb| verb == ALL || *verb == wanted.verb) {
        return false;
    }
    if !wanted.is_resource {
        return list(rule.non_resource_urls.as_ref()).iter().any(|url| path_matches(url, &wanted.path));
    }
    let names = list(rule.resource_names.as_ref());
    has(rule.api_groups.as_ref(), &wanted.group)
        && list(rule.resources.as_ref()).iter().any(|one| resource_matches(one, &wanted.resource, &wanted.subresource))
        && (names.is_empty() || names.contains(&wanted.name))
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == ALL || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == ALL {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((of, sub)) => !subresource.is_empty() && sub == subresource && (of == ALL || of == resource),
    }
}

/// The rules of `system:masters`.
pub fn everything() -> [PolicyRule; 2] {
    let all = || Some(vec![ALL.to_owned()]);
    let rule = |resources, urls| PolicyRule {
        verbs: vec![ALL.to_owned()],
        api_groups: resources,
        non_resource_urls: urls,
        ..PolicyRule::default()
    };
    [PolicyRule { resources: all(), ..rule(all(), None) }, rule(None, all())]
}

/// The rules of `servant` that `owner` does not cover, each broken down to one verb, group, resource and name.
pub fn uncovered(owner: &[PolicyRule], servant: &[PolicyRule]) -> Vec<PolicyRule> {
    servant.iter().flat_map(breakdown).filter(|one| !owner.iter().any(|rule| covers(rule, one))).collect()
}

fn breakdown(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut parts = Vec::new();
    let one = |text: &String| Some(vec![text.clone()]);
    for verb in &rule.verbs {
        let verbs = vec![verb.clone()];
        for group in list(rule.api_groups.as_ref()) {
            for resource in list(rule.resources.as_ref()) {
                let part = PolicyRule {
                    verbs: verbs.clone(),
                    api_groups: one(group),
                    resources: one(resource),
                    ..PolicyRule::default()
                };
                match list(rule.resource_names.as_ref()) {
                    [] => parts.push(part),
                    names => parts.extend(names.iter().map(|name| PolicyRule { resource_names: one(name), ..part.clone() })),
                }
            }
        }
        let urls = list(rule.non_resource_urls.as_ref()).iter();
        parts.extend(urls.map(|url| PolicyRule { verbs: verbs.clone(), non_resource_urls: one(url), ..PolicyRule::default() }));
    }
    parts
}

fn covers(owner: &PolicyRule, part: &PolicyRule) -> bool {
    let all_in = |own: Option<&Vec<String>>, parts: Option<&Vec<String>>| list(parts).iter().all(|one| has(own, one));
    let verbs = part.verbs.iter().all(|verb| owner.verbs.iter().any(|own| own == ALL || own == verb));
    if !list(part.non_resource_urls.as_ref()).is_empty() {
        let own = list(owner.non_resource_urls.as_ref());
        let covered = |url: &String| own.iter().any(|rule| path_matches(rule, url));
        return verbs && list(part.non_resource_urls.as_ref()).iter().all(covered);
    }
    let own_resources = list(owner.resources.as_ref());
    let resource_covered = |resource: &String| {
        own_resources.iter().any(|own| {
            let sub_of_all = || {
                let sub = resource.split_once('/').map(|(_, sub)| sub);
                sub.is_some() && own.strip_prefix("*/") == sub
            };
            own == ALL || own == resource || sub_of_all()
        })
    };
    let own_names = list(owner.resource_names.as_ref());
    let names = list(part.resource_names.as_ref());
    let names_covered = own_names.is_empty() || (!names.is_empty() && names.iter().all(|name| own_names.contains(name)));
    verbs
        && !own_resources.is_empty()
        && all_in(owner.api_groups.as_ref(), part.api_groups.as_ref())
        && list(part.resources.as_ref()).iter().all(resource_covered)
        && names_covered
}

/// A rule as messages show it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
pub fn describe(rule: &PolicyRule) -> String {
    let quoted = |texts: &[String]| texts.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" ");
    let parts: [(&str, &[String]); 5] = [
        ("NonResourceURLs", list(rule.non_resource_urls.as_ref())),
        ("APIGroups", list(rule.api_groups.as_ref())),
        ("Resources", list(rule.resources.as_ref())),
        ("ResourceNames", list(rule.resource_names.as_ref())),
        ("Verbs", &rule.verbs),
    ];
    let texts: Vec<String> =
        parts.iter().filter(|(_, texts)| !texts.is_empty()).map(|(name, texts)| format!("{name}:[{}]", quoted(texts))).collect();
    format!("{{{}}}", texts.join(", "))
}
