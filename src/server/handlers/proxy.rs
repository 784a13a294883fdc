//! `pods/NAME/proxy` and `services/NAME/proxy`: an HTTP request to what runs behind (`registry/core/{pod,service}`).

use std::sync::Arc;

use ::http::{HeaderValue, StatusCode, header};
use serde_json::Value;

use super::super::{RequestContext, Server, node, respond};
use crate::api::selector::label::Selector;
use crate::api::status::Reason;
use crate::api::{ApiError, Kind, Object};
use crate::http::connector::Endpoint;
use crate::http::{HttpRequest, HttpResponse};
use crate::registry::ListOptions;

/// Passes a request on to a pod or to an endpoint of a Service.
///
/// # Errors
/// 404, 503 when nothing is there to answer.
pub async fn serve(
    server: &Arc<Server>,
    context: &RequestContext,
    kind: &dyn Kind,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let info = &context.info;
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if info.rest.is_empty() && !info.path.ends_with('/') && matches!(info.verb.as_str(), "get") {
        let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, "");
        let location = format!("{}/{query}", info.path);
        let location = HeaderValue::from_str(&location).map_err(|error| ApiError::bad_request(error.to_string()))?;
        response.headers_mut().insert(header::LOCATION, location);
        return Ok(response);
    }
    let target = Target::parse(&info.name)?;
    let object = server.registry.get_object(kind, &info.namespace, target.name)?;
    let place = match kind.names().plural {
        "pods" => pod_address(&object, target.port)?,
        _ => service_address(server, &object, target.port)?,
    };
    let via = (!place.node.is_empty()).then(|| place.node.into());
    let endpoint = Endpoint { tls: target.tls, host: place.host, port: place.port, via };
    node::forward(server, &endpoint, &format!("/{}{query}", info.rest), request).await
}

/// `[scheme:]name[:port]`.
struct Target<'a> {
    tls: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Target<'a> {
    fn parse(text: &'a str) -> Result<Self, ApiError> {
        match text.split(':').collect::<Vec<_>>()[..] {
            [name] => Ok(Self { tls: false, name, port: "" }),
            [name, port] => Ok(Self { tls: false, name, port }),
            [scheme @ ("http" | "https" | ""), name, port] => Ok(Self { tls: scheme == "https", name, port }),
            _ => Err(ApiError::bad_request(format!("invalid request {text:?}"))),
        }
    }
}

/// Where something answers: an address of the pod network, and the node that it is on.
struct Place {
    host: String,
    port: u16,
    node: String,
}

fn pod_address(pod: &Object, port: &str) -> Result<Place, ApiError> {
    let host = pod.str_at(&["status", "podIP"]).filter(|host| !host.is_empty());
    let host =
        host.ok_or_else(|| ApiError::new(503, Reason::ServiceUnavailable, format!("pod {} has no address", pod.name())))?;
    let ports = pod.get(&["spec", "containers"]).and_then(Value::as_array).into_iter().flatten();
    let ports = ports.filter_map(|container| container.get("ports")?.as_array()).flatten();
    let number = |one: &Value| one.get("containerPort").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let found = if port.is_empty() {
        ports.filter_map(number).next().or(Some(80))
    } else {
        let mut ports = ports;
        port.parse().ok().or_else(|| ports.find(|one| one.get("name").and_then(Value::as_str) == Some(port)).and_then(number))
    };
    let found = found.ok_or_else(|| ApiError::bad_request(format!("no port {port:?} found for pod {}", pod.name())))?;
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or("").to_owned();
    Ok(Place { host: host.to_owned(), port: found, node })
}

fn service_address(server: &Server, service: &Object, port: &str) -> Result<Place, ApiError> {
    let unavailable = |why: String| ApiError::new(503, Reason::ServiceUnavailable, why);
    let ports: Vec<&Value> = service.get(&["spec", "ports"]).and_then(Value::as_array).into_iter().flatten().collect();
    let name = |one: &Value| one.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    let matches = |one: &&Value| {
        port.is_empty()
            || name(one) == port
            || one.get("port").and_then(Value::as_u64).is_some_and(|number| number.to_string() == port)
    };
    let wanted = ports.iter().copied().find(matches);
    let wanted = wanted.ok_or_else(|| unavailable(format!("no service port {port:?} found for service {:?}", service.name())))?;
    let wanted = name(wanted);
    let kind = server.registry.kinds().find("discovery.k8s.io", "v1", "endpointslices").ok_or_else(ApiError::no_such_path)?;
    let labels = [("kubernetes.io/service-name".to_owned(), service.name().to_owned())];
    let options =
        ListOptions { labels: Selector::from_labels(labels.iter().map(|(key, value)| (key, value))), ..ListOptions::default() };
    for entry in server.registry.list(&*kind, service.namespace(), &options)?.entries {
        let slice = server.registry.decode(&*kind, &entry)?;
        if let Some(found) = ready_endpoint(&slice, &wanted) {
            return Ok(found);
        }
    }
    Err(unavailable(format!("no endpoints available for service {:?}", service.name())))
}

fn ready_endpoint(slice: &Object, port_name: &str) -> Option<Place> {
    let ports = slice.get(&["ports"])?.as_array()?;
    let port = ports.iter().find(|port| port.get("name").and_then(Value::as_str).unwrap_or("") == port_name)?;
    let port = u16::try_from(port.get("port")?.as_u64()?).ok()?;
    let endpoints = slice.get(&["endpoints"])?.as_array()?;
    let is_ready = |endpoint: &&Value| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false));
    let place = |endpoint: &Value| {
        let host = endpoint.pointer("/addresses/0")?.as_str()?.to_owned();
        let node = endpoint.get("nodeName").and_then(Value::as_str).unwrap_or("").to_owned();
        Some(Place { host, port, node })
    };
    endpoints.iter().filter(is_ready).find_map(place)
}
