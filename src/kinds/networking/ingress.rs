//! Ingress: HTTP rules that lead to Services.

use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{HTTPIngressPath, Ingress, IngressBackend};
use serde_json::{Value, json};

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::kinds::check::{Errors, is_blank, port, required, required_one_of, required_rule, rule, str_of};
use crate::kinds::print::{age, name, or_none};
use crate::kinds::typed::Definition;

const CLASS: &str = "kubernetes.io/ingress.class";
/// How many hosts a row shows.
const SHOWN: usize = 3;

/// The kind.
pub static INGRESS: Definition<Ingress> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        Column::AGE,
    ],
    row: Some(row),
    initial_status: Some(|| json!({"loadBalancer": {}})),
    validate: Some(validate),
    warnings: Some(warnings),
    ..Definition::namespaced("io.k8s.api.networking.v1.Ingress", "networking.k8s.io/ingresses", "ingress").short(&["ing"])
};

fn validate(ingress: &Ingress) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let spec = ingress.spec.clone().unwrap_or_default();
    if is_blank(&spec.rules) && spec.default_backend.is_none() {
        let value = serde_json::to_value(&spec.rules).unwrap_or_default();
        errors.push(FieldError::invalid(path.clone(), value, "either `defaultBackend` or `rules` must be specified"));
    }
    if let Some(backend) = &spec.default_backend {
        self::backend(&mut errors, &path.child("defaultBackend"), backend);
    }
    for (index, each) in spec.rules.iter().flatten().enumerate() {
        let path = path.child("rules").index(index);
        let host = str_of(&each.host);
        if host.parse::<std::net::IpAddr>().is_ok() {
            errors.push(FieldError::invalid(path.child("host"), host, "must be a DNS name, not an IP address"));
        } else if let Some(rest) = host.strip_prefix("*.") {
            rule(&mut errors, &path.child("host"), rest, names::dns1123_subdomain);
        } else if !host.is_empty() {
            rule(&mut errors, &path.child("host"), host, names::dns1123_subdomain);
        }
        if let Some(http) = &each.http {
            let path = path.child("http").child("paths");
            if http.paths.is_empty() {
                errors.push(FieldError::required(path.clone(), ""));
            }
            for (index, each) in http.paths.iter().enumerate() {
                http_path(&mut errors, &path.index(index), each);
            }
        }
    }
    if let Some(class) = spec.ingress_class_name.as_deref() {
        rule(&mut errors, &path.child("ingressClassName"), class, names::dns1123_subdomain);
    }
    errors
}

fn http_path(errors: &mut Errors, path: &Path, each: &HTTPIngressPath) {
    let supported = ["Exact", "ImplementationSpecific", "Prefix"];
    if each.path_type.is_empty() {
        errors.push(FieldError::required(path.child("pathType"), "pathType must be specified"));
    } else {
        required_one_of(errors, &path.child("pathType"), &each.path_type, &supported);
    }
    let text = str_of(&each.path);
    let is_strict = matches!(each.path_type.as_str(), "Exact" | "Prefix");
    if is_strict && !text.starts_with('/') {
        errors.push(FieldError::invalid(path.child("path"), text, "must be an absolute path"));
    }
    for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|part| is_strict && text.contains(part)) {
        errors.push(FieldError::invalid(path.child("path"), text, format!("must not contain '{part}'")));
    }
    backend(errors, &path.child("backend"), &each.backend);
}

fn backend(errors: &mut Errors, path: &Path, backend: &IngressBackend) {
    match (&backend.service, &backend.resource) {
        (Some(_), Some(_)) => {
            errors.push(FieldError::invalid(path.clone(), "", "cannot set both resource and service backends"));
        }
        (None, None) => errors.push(FieldError::required(path.clone(), "port name or number is required")),
        (None, Some(resource)) => {
            required(errors, &path.child("resource").child("kind"), &resource.kind);
            required(errors, &path.child("resource").child("name"), &resource.name);
        }
        (Some(service), None) => {
            let path = path.child("service");
            required_rule(errors, &path.child("name"), &service.name, names::dns1035_label);
            let given = service.port.clone().unwrap_or_default();
            match (str_of(&given.name), given.number.unwrap_or(0)) {
                ("", 0) => errors.push(FieldError::required(path, "port name or number is required")),
                ("", number) => port(errors, &path.child("port").child("number"), i64::from(number)),
                (name, 0) => rule(errors, &path.child("port").child("name"), name, names::port_name),
                _ => errors.push(FieldError::invalid(path, "", "cannot set both port name & port number")),
            }
        }
    }
}

fn warnings(ingress: &Ingress) -> Vec<String> {
    let annotations = ingress.metadata.annotations.as_ref();
    let has_class = annotations.is_some_and(|annotations| annotations.contains_key(CLASS));
    let text = format!("annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead");
    if has_class { vec![text] } else { Vec::new() }
}

fn row(ingress: &Ingress, now: Timestamp) -> Vec<Value> {
    let spec = ingress.spec.clone().unwrap_or_default();
    let annotation = ingress.metadata.annotations.as_ref().and_then(|annotations| annotations.get(CLASS));
    let class = spec.ingress_class_name.as_deref().or(annotation.map(String::as_str));
    let hosts: Vec<&str> = spec.rules.iter().flatten().map(|rule| str_of(&rule.host)).filter(|host| !host.is_empty()).collect();
    let hosts = match hosts.len() {
        0 => "*".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", hosts[..SHOWN].join(","), count - SHOWN),
        _ => hosts.join(","),
    };
    let balancer = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let addresses: Vec<String> = balancer
        .and_then(|balancer| balancer.ingress.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|it| it.ip.clone().or_else(|| it.hostname.clone()))
        .collect();
    let ports = if is_blank(&spec.tls) { "80" } else { "80, 443" };
    vec![
        name(&ingress.metadata),
        or_none(class).into(),
        hosts.into(),
        addresses.join(",").into(),
        ports.into(),
        age(&ingress.metadata, now),
    ]
}
