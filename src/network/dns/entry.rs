//! What DNS knows of a Service and of an EndpointSlice: the few fields that answers are made of, in the form that they are sent in.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::name::{Name, label};

/// The label that names a slice's Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A port by its name and protocol, both lower-cased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: Box<[u8]>,
    pub(super) protocol: Box<[u8]>,
    pub(super) number: u16,
}

impl Port {
    fn new(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Self> {
        let lower = |text: &str| text.to_ascii_lowercase().into_bytes().into_boxed_slice();
        let number = u16::try_from(number).ok()?;
        Some(Self { name: lower(name.unwrap_or("")), protocol: lower(protocol.unwrap_or("TCP")), number })
    }
}

/// How a Service is answered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// By its own addresses.
    Addresses(Box<[IpAddr]>),
    /// By its endpoints.
    Endpoints,
    /// By another name.
    Alias(Box<[u8]>),
    /// Not at all.
    Nothing,
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceEntry {
    pub(super) target: Target,
    pub(super) ports: Box<[Port]>,
}

impl ServiceEntry {
    pub(super) fn of(service: &Service) -> Self {
        let Some(spec) = &service.spec else { return Self { target: Target::Nothing, ports: Box::default() } };
        let target = if spec.type_.as_deref() == Some("ExternalName") {
            alias(spec.external_name.as_deref().unwrap_or(""))
        } else if spec.cluster_ip.as_deref() == Some("None") {
            Target::Endpoints
        } else {
            let all = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
            let mut addresses: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() { Target::Nothing } else { Target::Addresses(addresses.into()) }
        };
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter_map(|port| Port::new(port.name.as_deref(), port.protocol.as_deref(), port.port)).collect();
        Self { target, ports }
    }

    /// The addresses that the Service itself has.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        if let Target::Addresses(addresses) = &self.target { addresses } else { &[] }
    }
}

/// As CoreDNS: an external name that is an address is none.
fn alias(text: &str) -> Target {
    let name = Name::from_text(text).filter(|name| name.labels() > 0 && text.parse::<IpAddr>().is_err());
    name.map_or(Target::Nothing, |name| Target::Alias(name.wire().into()))
}

/// An endpoint that takes traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointEntry {
    /// Its name below the Service's, one label in wire form.
    pub(super) label: Box<[u8]>,
    /// Whether it was given that name, rather than having it by its address.
    pub(super) is_named: bool,
    pub(super) ip: IpAddr,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SliceEntry {
    pub(super) endpoints: Box<[EndpointEntry]>,
    pub(super) ports: Box<[Port]>,
}

impl SliceEntry {
    pub(super) fn of(slice: &EndpointSlice) -> Self {
        let endpoints = slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)).flat_map(entries).collect();
        let ports = slice.ports.iter().flatten();
        let port = |port: &k8s_openapi::api::discovery::v1::EndpointPort| {
            Port::new(port.name.as_deref(), port.protocol.as_deref(), port.port?)
        };
        Self { endpoints, ports: ports.filter_map(port).collect() }
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false)
}

fn entries(endpoint: &Endpoint) -> impl Iterator<Item = EndpointEntry> {
    let given = endpoint.hostname.as_deref().filter(|name| !name.is_empty()).and_then(label);
    endpoint.addresses.iter().filter_map(move |address| {
        let ip: IpAddr = address.parse().ok()?;
        let is_named = given.is_some();
        let label = given.clone().or_else(|| label(&dashed(ip)))?.into();
        Some(EndpointEntry { label, is_named, ip })
    })
}

/// An address as a label: `10-42-0-7`, `fd00--7`.
pub(super) fn dashed(ip: IpAddr) -> String {
    let text = ip.to_string().replace(['.', ':'], "-");
    // A label does not end with a dash.
    if text.ends_with('-') { text + "0" } else { text }
}

/// The address that a label says, as the pods' names have it.
pub(super) fn undashed(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    let dashes = text.bytes().filter(|byte| *byte == b'-').count();
    let separator = if dashes == 3 && !text.contains("--") { "." } else { ":" };
    text.replace('-', separator).parse().ok()
}

/// The key of a Service: its name and namespace as they stand in names.
pub(super) fn key(namespace: &str, name: &str) -> Option<Box<[u8]>> {
    let mut key = label(name)?;
    key.extend(label(namespace)?);
    Some(key.into())
}

/// The key of the Service that a slice belongs to.
pub(super) fn key_of_slice(slice: &EndpointSlice) -> Option<Box<[u8]>> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    key(slice.metadata.namespace.as_deref()?, service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_labels_and_back() {
        for (ip, text) in [("10.42.0.7", "10-42-0-7"), ("fd00::7", "fd00--7"), ("fd00::", "fd00--0"), ("::1", "--1")] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!((dashed(ip).as_str(), undashed(text.as_bytes())), (text, Some(ip)));
        }
        for text in ["10-42-0", "10-42-0-256", "a-b-c-d", "", "10-42-0-x"] {
            assert_eq!(undashed(text.as_bytes()), None, "{text}");
        }
    }
}
