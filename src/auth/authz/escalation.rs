//! Nobody gives rights that they do not have: the checks on writes of roles and bindings, as upstream's
//! `pkg/registry/rbac/*/policybased`.

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use serde::Deserialize;

use super::{Authorizer, rules};
use crate::api::{ApiError, Kind, Object};
use crate::auth::{Attributes, UserInfo};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a role or binding that `user` is about to create or change to `object`; all other kinds pass.
///
/// # Errors
/// 403 in upstream's words, which names the rules that the user lacks.
pub fn check(
    authorizer: &Authorizer,
    user: &UserInfo,
    kind: &dyn Kind,
    namespace: &str,
    object: &Object,
    old: Option<&Object>,
) -> Result<(), ApiError> {
    let names = kind.names();
    if names.group != GROUP || user.is_master() {
        return Ok(());
    }
    let unchanged = |field: &str| old.is_some_and(|old| old.0.get(field) == object.0.get(field));
    match names.plural {
        "roles" | "clusterroles" if unchanged("rules") && unchanged("aggregationRule") => Ok(()),
        "roles" | "clusterroles" => {
            if holds(authorizer, user, "escalate", names.plural, namespace, object.name()) {
                return Ok(());
            }
            let wanted = match object.0.get("aggregationRule").filter(|rule| !rule.is_null()) {
                // What an aggregated role will hold is not known: only who has everything may make one.
                Some(_) => rules::everything().to_vec(),
                None => rules::of(object)?,
            };
            must_cover(authorizer, user, kind, namespace, object.name(), &wanted)
        }
        "rolebindings" | "clusterrolebindings" if unchanged("roleRef") && unchanged("subjects") => Ok(()),
        "rolebindings" | "clusterrolebindings" => {
            let role = Object(object.0.get("roleRef").and_then(|value| value.as_object()).cloned().unwrap_or_default());
            let role = RoleRef::deserialize(serde_json::Value::Object(role.0))
                .map_err(|error| ApiError::bad_request(format!("json: cannot unmarshal: {error}")))?;
            let plural = if role.kind == "Role" { "roles" } else { "clusterroles" };
            if holds(authorizer, user, "bind", plural, namespace, &role.name) {
                return Ok(());
            }
            let wanted = authorizer.rules_of_role(&role.kind, namespace, &role.name);
            let wanted = wanted.map_err(|error| ApiError::new(404, crate::api::status::Reason::NotFound, error))?;
            must_cover(authorizer, user, kind, namespace, object.name(), &wanted)
        }
        _ => Ok(()),
    }
}

fn holds(authorizer: &Authorizer, user: &UserInfo, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    authorizer.authorize(user, &Attributes::resource(verb, GROUP, resource, namespace, name)).is_allowed()
}

fn must_cover(
    authorizer: &Authorizer,
    user: &UserInfo,
    kind: &dyn Kind,
    namespace: &str,
    name: &str,
    wanted: &[PolicyRule],
) -> Result<(), ApiError> {
    let (own, errors) = authorizer.rules_for(user, namespace);
    let lacking = rules::uncovered(&own, wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = user.groups.iter().map(|group| format!("{group:?}")).collect();
    let mut lines: Vec<String> = lacking.iter().map(rules::describe).collect();
    lines.sort_unstable();
    lines.dedup();
    let mut why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        lines.join("\n")
    );
    if !errors.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", errors.join(", ")));
    }
    Err(ApiError::forbidden(&kind.names().group_resource(), name, why))
}
