//! Authorization of a request, and its refusal in upstream's words.

use crate::api::ApiError;
use crate::api::status::{GroupResource, Reason};
use crate::auth::{Attributes, Decision, UserInfo};
use crate::http::HttpRequest;
use crate::server::{RequestInfo, Server, negotiate};

/// The attributes that authorization decides by.
pub fn attributes(info: &RequestInfo) -> Attributes {
    if !info.is_resource {
        return Attributes::path(&info.verb, &info.path);
    }
    Attributes {
        verb: info.verb.clone(),
        namespace: info.namespace.clone(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        name: info.name.clone(),
        label_selector: info.label_selector.clone(),
        field_selector: info.field_selector.clone(),
        path: info.path.clone(),
        is_resource: true,
    }
}

/// Lets the request through or refuses it with 403.
pub(super) fn authorize(server: &Server, user: &UserInfo, info: &RequestInfo) -> Result<(), ApiError> {
    let wanted = attributes(info);
    match server.authorizer.authorize(user, &wanted) {
        Decision::Allow { .. } => Ok(()),
        Decision::NoOpinion { reason } => Err(forbidden(user, &wanted, &reason)),
    }
}

/// Why a server-side apply, or a PUT, may not create the object; `None` for other requests too.
pub(super) fn refuses_create(server: &Server, user: &UserInfo, info: &RequestInfo, request: &HttpRequest) -> Option<ApiError> {
    let may_create = info.verb == "update" || (info.verb == "patch" && negotiate::is_apply(request.headers()));
    if !may_create || !info.subresource.is_empty() {
        return None;
    }
    authorize(server, user, &RequestInfo { verb: "create".to_owned(), ..info.clone() }).err()
}

/// The refusal, in the words of `responsewriters.Forbidden`.
pub(super) fn forbidden(user: &UserInfo, wanted: &Attributes, reason: &str) -> ApiError {
    let behind = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let Attributes { verb, namespace, group, resource, subresource, name, path, .. } = wanted;
    if !wanted.is_resource {
        let message = format!("forbidden: User {:?} cannot {verb} path {path:?}{behind}", user.name);
        return ApiError::new(403, Reason::Forbidden, message);
    }
    let full = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() { "at the cluster scope".to_owned() } else { format!("in the namespace {namespace:?}") };
    let why = format!("User {:?} cannot {verb} resource {full:?} in API group {group:?} {place}{behind}", user.name);
    ApiError::forbidden(&GroupResource { group, resource }, name, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_in_upstream_words() {
        let user = UserInfo::new("x", &[]);
        let mut log = Attributes::resource("get", "", "pods", "default", "a");
        log.subresource = "log".to_owned();
        let table = [
            (
                Attributes::resource("list", "", "pods", "default", ""),
                r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                Attributes::resource("list", "apps", "deployments", "", ""),
                r#"deployments.apps is forbidden: User "x" cannot list resource "deployments" in API group "apps" at the cluster scope"#,
            ),
            (log, r#"pods "a" is forbidden: User "x" cannot get resource "pods/log" in API group "" in the namespace "default""#),
            (Attributes::path("get", "/"), r#"forbidden: User "x" cannot get path "/""#),
        ];
        for (wanted, message) in table {
            assert_eq!(forbidden(&user, &wanted, "").message, message);
        }
        assert!(forbidden(&user, &Attributes::path("get", "/"), "why").message.ends_with(": why"));
    }
}
