//! Connections to pods: log, exec, attach, port-forward (`registry/core/pod/strategy.go`). The kubelet does the work.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::super::{RequestContext, Server, node, respond};
use super::body;
use crate::api::field::{FieldError, Path};
use crate::api::kind::Subresource;
use crate::api::status::{GroupResource, Reason};
use crate::api::{ApiError, Kind, Object};
use crate::http::{HttpRequest, HttpResponse};

/// Longest text of a kubelet's error.
const ERROR_BYTES: usize = 50 << 10;

/// Query parameters of a log that the kubelet knows.
const LOG_PARAMETERS: &[&str] = &[
    "follow",
    "previous",
    "timestamps",
    "sinceSeconds",
    "sinceTime",
    "tailLines",
    "limitBytes",
    "stream",
    "insecureSkipTLSVerifyBackend",
];

/// The streams of exec and attach: their names here, and those of the kubelet.
const STREAMS: &[(&str, &str)] = &[("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")];

/// Serves a connecting subresource of a pod.
///
/// # Errors
/// 404, 400 where no container is named or the pod has no node, and the kubelet's.
pub async fn connect(
    server: &Arc<Server>,
    context: &RequestContext,
    kind: &dyn Kind,
    subresource: Subresource,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let info = &context.info;
    let pod = server.registry.get_object(kind, &info.namespace, &info.name)?;
    let node_name = pod.str_at(&["spec", "nodeName"]).unwrap_or("").to_owned();
    let path = match subresource {
        Subresource::Log => {
            check_log_options(context)?;
            let container = container(&pod, context.query("container").unwrap_or(""))?;
            if node_name.is_empty() {
                return Ok(respond::text(StatusCode::OK, ""));
            }
            format!("/containerLogs/{}/{}/{container}?{}", info.namespace, info.name, log_query(context))
        }
        Subresource::PortForward => {
            has_host(&pod, &node_name)?;
            format!("/portForward/{}/{}?{}", info.namespace, info.name, pairs(context, &["ports"], "port"))
        }
        Subresource::Exec | Subresource::Attach => {
            let container = container(&pod, context.query("container").unwrap_or(""))?;
            has_host(&pod, &node_name)?;
            let query = stream_query(context)?;
            format!("/{}/{}/{}/{container}?{query}", subresource.as_str(), info.namespace, info.name)
        }
        _ => return Err(ApiError::no_such_path()),
    };
    let response = node::proxy(server, &node_name, &path, request).await?;
    checked(response, subresource, &info.name).await
}

fn has_host(pod: &Object, node_name: &str) -> Result<(), ApiError> {
    if node_name.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", pod.name())));
    }
    Ok(())
}

/// The container that is meant: the one that is named, or the only one.
fn container(pod: &Object, wanted: &str) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod.get(&["spec", list]).and_then(Value::as_array).into_iter().flatten();
        containers.filter_map(|container| container.get("name")?.as_str().map(ToOwned::to_owned)).collect()
    };
    let containers = names("containers");
    let init = names("initContainers");
    if !wanted.is_empty() {
        let is_known =
            [&containers, &init, &names("ephemeralContainers")].iter().any(|list| list.iter().any(|name| name == wanted));
        return if is_known {
            Ok(wanted.to_owned())
        } else {
            Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {}", pod.name())))
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {}", pod.name()))),
        many => {
            let mut why =
                format!("a container name must be specified for pod {}, choose one of: [{}]", pod.name(), many.join(" "));
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(why))
        }
    }
}

/// Checks the options of a log (upstream `ValidatePodLogOptions`).
fn check_log_options(context: &RequestContext) -> Result<(), ApiError> {
    let given = |name: &str| context.query(name).filter(|text| !text.is_empty());
    let number = |name: &str| match given(name).map(|text| (text, text.parse::<i64>())) {
        None => Ok(None),
        Some((_, Ok(number))) => Ok(Some(number)),
        Some((text, Err(_))) => Err(ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    };
    let mut errors = Vec::new();
    let mut at_least = |name: &str, least: i64, why: &str| -> Result<Option<i64>, ApiError> {
        let found = number(name)?;
        errors.extend(found.filter(|found| *found < least).map(|found| FieldError::invalid(Path::new(name), found, why)));
        Ok(found)
    };
    let tail = at_least("tailLines", 0, "must be greater than or equal to 0")?;
    at_least("limitBytes", 1, "must be greater than 0")?;
    match (given("sinceTime"), number("sinceSeconds")?) {
        (Some(_), Some(_)) => {
            let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            errors.push(FieldError::forbidden(Path::new(""), why));
        }
        (None, Some(seconds)) if seconds < 1 => {
            errors.push(FieldError::invalid(Path::new("sinceSeconds"), seconds, "must be greater than 0"));
        }
        _ => {}
    }
    match given("stream") {
        None | Some("All") => {}
        Some("Stdout" | "Stderr") if tail.is_none() => {}
        Some("Stdout" | "Stderr") => {
            let why = "`tailLines` and specific `stream` are mutually exclusive for now";
            errors.push(FieldError::forbidden(Path::new(""), why));
        }
        Some(other) => errors.push(FieldError::not_supported(Path::new("stream"), other, &["All", "Stderr", "Stdout"])),
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("", "PodLogOptions", &context.info.name, &errors)) }
}

fn log_query(context: &RequestContext) -> String {
    let known = context.query.iter().filter(|(key, _)| LOG_PARAMETERS.contains(&key.as_str()));
    let texts: Vec<String> = known.map(|(key, value)| format!("{key}={}", escape(value))).collect();
    texts.join("&")
}

/// Parameters of one name under another, each value a pair.
fn pairs(context: &RequestContext, names: &[&str], to: &str) -> String {
    let known = context.query.iter().filter(|(key, _)| names.contains(&key.as_str()));
    let texts: Vec<String> = known.map(|(_, value)| format!("{to}={}", escape(value))).collect();
    texts.join("&")
}

fn stream_query(context: &RequestContext) -> Result<String, ApiError> {
    let mut parts = Vec::new();
    for (name, kubelet_name) in STREAMS {
        if context.flag(name) {
            parts.push(format!("{kubelet_name}=1"));
        }
    }
    let said = STREAMS[..3].iter().any(|(name, _)| context.query(name).is_some());
    if !said {
        parts.extend(["output=1".to_owned(), "error=1".to_owned()]);
    } else if !STREAMS[..3].iter().any(|(name, _)| context.flag(name)) {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    let commands = pairs(context, &["command"], "command");
    if !commands.is_empty() {
        parts.push(commands);
    }
    Ok(parts.join("&"))
}

/// A value of a query, percent-encoded.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Turns the kubelet's plain errors into the API's.
async fn checked(response: HttpResponse, subresource: Subresource, name: &str) -> Result<HttpResponse, ApiError> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(without_length(response));
    }
    let body = body::collect(response.into_body(), ERROR_BYTES).await?;
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    Err(match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        StatusCode::NOT_FOUND => {
            let resource = format!("pods/{}", subresource.as_str());
            let mut error = ApiError::not_found(&GroupResource { group: "", resource: &resource }, name);
            error.message = format!("the server could not find the requested resource ( {resource} {name}): {text}");
            error
        }
        _ => ApiError::new(status.as_u16(), Reason::Unknown, text),
    })
}

fn without_length(mut response: HttpResponse) -> HttpResponse {
    let headers: &mut HeaderMap = response.headers_mut();
    headers.remove(::http::header::DATE);
    response
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_found_or_asked_for() {
        let pod = |spec: Value| Object(json!({"metadata": {"name": "p"}, "spec": spec}).as_object().unwrap().clone());
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let init = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]});
        for (spec, wanted, found) in [
            (json!({"containers": [{"name": "a"}]}), "", Ok("a")),
            (two.clone(), "b", Ok("b")),
            (init.clone(), "i", Ok("i")),
            (two.clone(), "", Err("a container name must be specified for pod p, choose one of: [a b]")),
            (
                init,
                "",
                Err("a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"),
            ),
            (two, "c", Err("container c is not valid for pod p")),
        ] {
            let answer = container(&pod(spec), wanted);
            assert_eq!(answer.as_deref().map_err(|error| error.message.as_str()), found);
        }
        assert_eq!(escape("a b&c=/"), "a%20b%26c%3D%2F");
    }
}
