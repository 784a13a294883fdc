//! A container's environment, and the expansion of `$(VAR)` in it, in commands and in arguments. Pure functions; the order in
//! which sources win is the kubelet's `makeEnvironmentVariables`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Secret, Service};

use super::env_file;
use super::fields::{FieldContext, field_value, resource_value};

/// ConfigMaps and Secrets that a container refers to, as they are now; an absent one has no entry.
#[derive(Debug, Clone, Default)]
pub struct References {
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// Texts of env files by volume and path.
    pub files: BTreeMap<(String, String), String>,
}

/// The names of ConfigMaps and Secrets that a container's environment refers to.
pub fn referenced(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut config_maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for source in container.env_from.iter().flatten() {
        config_maps.extend(source.config_map_ref.iter().map(|selector| selector.name.clone()));
        secrets.extend(source.secret_ref.iter().map(|selector| selector.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|selector| selector.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|selector| selector.name.clone()));
    }
    (config_maps, secrets)
}

/// Whether the environment depends on the pod's address, so that the container can be made only when the pod has it.
pub fn needs_pod_ip(container: &Container) -> bool {
    container.env.iter().flatten().any(|var| {
        let field = var.value_from.as_ref().and_then(|source| source.field_ref.as_ref());
        field.is_some_and(|field| field.field_path.starts_with("status.podIP"))
    })
}

/// All variables of a container, in order, expanded.
///
/// # Errors
/// The kubelet's words for a source that is not there, for `CreateContainerConfigError`.
pub fn environment(
    container: &Container,
    context: &FieldContext<'_>,
    references: &References,
    services: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, String> {
    let mut variables = Variables::default();
    for (name, value) in from_whole_objects(container, references)? {
        variables.set(&name, value);
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) if !value.is_empty() => {
                let lookup = |name: &str| variables.get(name).or_else(|| services.get(name).map(String::as_str));
                Some(expand(value, lookup))
            }
            (_, Some(source)) => from_source(source, container, context, references)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            variables.set(&var.name, value);
        }
    }
    for (name, value) in services {
        if variables.get(name).is_none() {
            variables.set(name, value.clone());
        }
    }
    Ok(variables.list)
}

/// Variables in order; one that is set again keeps its place.
#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).and_then(|place| self.list.get(*place)).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.places.get(name).and_then(|place| self.list.get_mut(*place)) {
            Some(known) => known.1 = value,
            None => {
                self.places.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }
}

fn from_whole_objects(container: &Container, references: &References) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        let mut add = |key: &str, value: String| {
            let name = format!("{prefix}{key}");
            if !(name.is_empty() || name.contains('=')) {
                found.push((name, value));
            }
        };
        if let Some(selector) = &source.config_map_ref {
            match references.config_maps.get(&selector.name) {
                Some(config_map) => {
                    config_map.data.iter().flatten().for_each(|(key, value)| add(key, value.clone()));
                }
                None if selector.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", selector.name)),
            }
        }
        if let Some(selector) = &source.secret_ref {
            match references.secrets.get(&selector.name) {
                Some(secret) => {
                    let data = secret.data.iter().flatten();
                    data.for_each(|(key, value)| add(key, String::from_utf8_lossy(&value.0).into_owned()));
                }
                None if selector.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", selector.name)),
            }
        }
    }
    Ok(found)
}

/// The value of a `valueFrom`; `None` for an optional source that is not there.
fn from_source(
    source: &EnvVarSource,
    container: &Container,
    context: &FieldContext<'_>,
    references: &References,
) -> Result<Option<String>, String> {
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or("");
    if let Some(field) = &source.field_ref {
        return field_value(context, &field.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
        let spec = context.pod.spec.iter();
        let mut all = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let target = match named {
            Some(name) => all.find(|other| other.name == name).ok_or_else(|| format!("container {name} not found"))?,
            None => container,
        };
        return resource_value(selector, target, &context.allocatable).map(Some);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        return match references.config_maps.get(&selector.name) {
            None if optional => Ok(None),
            None => Err(format!("configmap \"{}\" not found", selector.name)),
            Some(found) => match found.data.as_ref().and_then(|data| data.get(&selector.key)) {
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", selector.key, selector.name)),
                Some(value) => Ok(Some(value.clone())),
            },
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        return match references.secrets.get(&selector.name) {
            None if optional => Ok(None),
            None => Err(format!("secret \"{}\" not found", selector.name)),
            Some(found) => match found.data.as_ref().and_then(|data| data.get(&selector.key)) {
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in Secret {namespace}/{}", selector.key, selector.name)),
                Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            },
        };
    }
    if let Some(selector) = &source.file_key_ref {
        let optional = selector.optional == Some(true);
        let text = references.files.get(&(selector.volume_name.clone(), selector.path.clone()));
        let found = text.map_or(Ok(None), |text| env_file::value(text, &selector.key));
        return match found.map_err(|why| format!("couldn't parse env file {}: {why}", selector.path))? {
            None if optional => Ok(None),
            None if text.is_none() => Err(format!("env file {} not found in volume {}", selector.path, selector.volume_name)),
            None => Err(format!("environment variable key \"{}\" not found in file \"{}\"", selector.key, selector.path)),
            found => Ok(found),
        };
    }
    Err("environment variable has no source".to_owned())
}

/// The files that a container's environment refers to: volume, and path in it.
pub fn referenced_files(container: &Container) -> BTreeSet<(String, String)> {
    let sources = container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()?.file_key_ref.as_ref());
    sources.map(|selector| (selector.volume_name.clone(), selector.path.clone())).collect()
}

/// Replaces `$(VAR)`; what is not known stays as it is, `$$` is one `$`.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(literal) = after.strip_prefix('$') {
            expanded.push('$');
            rest = literal;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = tail;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

/// The variables by which Services are found: those of the pod's namespace (if `links`), and the API server's.
pub fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let is_api = |service: &Service| {
        service.metadata.namespace.as_deref() == Some("default") && service.metadata.name.as_deref() == Some("kubernetes")
    };
    let mut variables = BTreeMap::new();
    for service in services.iter().filter(|service| is_api(service)) {
        of_service(service, &mut variables);
    }
    let in_namespace = |service: &&Arc<Service>| service.metadata.namespace.as_deref() == Some(namespace);
    for service in services.iter().filter(in_namespace).filter(|_| links) {
        of_service(service, &mut variables);
    }
    variables
}

fn of_service(service: &Service, variables: &mut BTreeMap<String, String>) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or("");
    let ports = spec.ports.as_deref().unwrap_or(&[]);
    if ip.is_empty() || ip == "None" || ports.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return;
    }
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(service.metadata.name.as_deref().unwrap_or(""));
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    variables.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.insert(format!("{name}_SERVICE_PORT"), port.port.to_string());
            variables.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = port.name.as_deref().filter(|port_name| !port_name.is_empty()) {
            variables.insert(format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
        let prefix = format!("{name}_PORT_{}_{protocol}", port.port);
        variables.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{prefix}_PORT"), port.port.to_string());
        variables.insert(format!("{prefix}_ADDR"), ip.to_owned());
        variables.insert(prefix, url);
    }
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
