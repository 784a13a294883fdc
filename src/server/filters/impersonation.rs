//! `Impersonate-User` and friends: acting as somebody else, where RBAC allows it. Follows upstream's `filters/impersonation.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::http::HeaderMap;

use super::authz::forbidden;
use crate::api::ApiError;
use crate::auth::{ANONYMOUS, AUTHENTICATED, Attributes, Decision, UNAUTHENTICATED, UserInfo};
use crate::http::HttpRequest;
use crate::server::Server;
use crate::server::request_info::percent_decode;

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// The user whom the request is to be of: the one of its headers, or `user` if it has none. Takes the headers out.
pub(super) fn impersonate(server: &Server, user: Arc<UserInfo>, request: &mut HttpRequest) -> Result<Arc<UserInfo>, ApiError> {
    let Some(wanted) = wanted(request.headers())? else { return Ok(user) };
    for attributes in permissions(&wanted) {
        if let Decision::NoOpinion { reason } = server.authorizer.authorize(&user, &attributes) {
            return Err(forbidden(&user, &attributes, &reason));
        }
    }
    let names: Vec<_> = request.headers().keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in names {
        request.headers_mut().remove(name);
    }
    tracing::debug!(by = %user.name, as_user = %wanted.name, "impersonation");
    Ok(Arc::new(completed(wanted)))
}

/// What the headers ask for.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
    if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let groups = headers.get_all(GROUP).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(EXTRA).filter(|key| !key.is_empty()) else { continue };
        let Ok(value) = value.to_str() else { continue };
        extra.entry(percent_decode(key, false).to_lowercase()).or_default().push(value.to_owned());
    }
    let wanted = UserInfo { name: text(USER), uid: text(UID), groups, extra };
    if wanted.name.is_empty() {
        let message = "requested impersonation of groups, uid or extra without impersonating a user name";
        return if wanted == UserInfo::default() { Ok(None) } else { Err(ApiError::bad_request(message)) };
    }
    Ok(Some(wanted))
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?.split_once(':').filter(|(_, name)| !name.contains(':'))
}

/// Everything that the caller must be allowed to impersonate.
fn permissions(wanted: &UserInfo) -> Vec<Attributes> {
    let of = |group: &str, resource: &str, namespace: &str, name: &str| {
        Attributes::resource("impersonate", group, resource, namespace, name)
    };
    let mut all = vec![match service_account(&wanted.name) {
        Some((namespace, name)) => of("", "serviceaccounts", namespace, name),
        None => of("", "users", "", &wanted.name),
    }];
    all.extend(wanted.groups.iter().map(|group| of("", "groups", "", group)));
    if !wanted.uid.is_empty() {
        all.push(of("authentication.k8s.io", "uids", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        all.extend(values.iter().map(|value| {
            let mut attributes = of("authentication.k8s.io", "userextras", "", value);
            attributes.subresource.clone_from(key);
            attributes
        }));
    }
    all
}

/// The groups that follow from who the user is.
fn completed(mut user: UserInfo) -> UserInfo {
    if let Some((namespace, name)) = service_account(&user.name)
        && user.groups.is_empty()
    {
        user.groups = UserInfo::service_account(namespace, name).groups;
    }
    let implied = if user.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(implied.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_wanted_and_what_it_takes() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                map.append(*name, value.parse().unwrap());
            }
            map
        };
        assert_eq!(wanted(&headers(&[("accept", "x")])), Ok(None));
        assert!(wanted(&headers(&[(GROUP, "g")])).is_err());
        let shown = |pairs: &[(&'static str, &str)]| -> Vec<String> {
            let user = wanted(&headers(pairs)).unwrap().unwrap();
            let one = |one: Attributes| format!("{}/{} {}/{}", one.resource, one.subresource, one.namespace, one.name);
            permissions(&user).into_iter().map(one).collect()
        };
        let pairs = [(USER, "jane"), (GROUP, "a"), (GROUP, "b"), ("impersonate-extra-ex%2fk", "v"), (UID, "7")];
        assert_eq!(shown(&pairs), ["users/ /jane", "groups/ /a", "groups/ /b", "uids/ /7", "userextras/ex/k /v"]);
        assert_eq!(shown(&[(USER, "system:serviceaccount:ns:sa")]), ["serviceaccounts/ ns/sa"]);
        let account = completed(UserInfo::new("system:serviceaccount:ns:sa", &[]));
        assert_eq!(account.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        assert_eq!(completed(UserInfo::new(ANONYMOUS, &[])).groups, [UNAUTHENTICATED]);
    }
}
