//! The index that the cluster's names are answered from. It follows the informers: a change costs the change, not the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::entry::{self, EndpointEntry, ServiceEntry, SliceEntry};
use super::name::label;

/// A Service's name and namespace: two labels in wire form, as they stand next to each other in a question.
pub(super) type Key = Box<[u8]>;

/// The parts of the index that are filled from informers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Services,
    Slices,
    Namespaces,
}

/// Services, endpoints and namespaces by their names and addresses.
#[derive(Default)]
pub(super) struct Index {
    services: HashMap<Key, ServiceEntry>,
    /// By Service, then by the slice's own name.
    slices: HashMap<Key, BTreeMap<Box<str>, SliceEntry>>,
    namespaces: HashSet<Box<[u8]>>,
    service_ips: HashMap<IpAddr, BTreeSet<Key>>,
    /// Which slices an address stands in.
    endpoint_ips: HashMap<IpAddr, BTreeSet<(Key, Box<str>)>>,
    filled: HashSet<Part>,
    serial: u32,
}

impl Index {
    /// An empty index whose zone has this serial number to begin with.
    pub(super) fn new(serial: u32) -> Self {
        Self { serial, ..Self::default() }
    }

    /// Notes that everything of a part has been told, so that what is not there is known not to be.
    pub(super) fn fill(&mut self, part: Part) {
        self.filled.insert(part);
    }

    /// Whether all parts have been told.
    pub(super) fn is_complete(&self) -> bool {
        self.filled.len() == 3
    }

    /// The zone's serial number: it grows with every change.
    pub(super) const fn serial(&self) -> u32 {
        self.serial
    }

    /// Puts a Service in the place of an older state of it.
    pub(super) fn set_service(&mut self, service: &Service) {
        self.remove_service(service);
        let Some(key) = key_of(service) else { return };
        let entry = ServiceEntry::of(service);
        for ip in entry.addresses() {
            self.service_ips.entry(*ip).or_default().insert(key.clone());
        }
        self.services.insert(key, entry);
    }

    /// Takes a Service away.
    pub(super) fn remove_service(&mut self, service: &Service) {
        self.serial = self.serial.wrapping_add(1);
        let Some(key) = key_of(service) else { return };
        let Some(entry) = self.services.remove(&key) else { return };
        for ip in entry.addresses() {
            drop_from(&mut self.service_ips, ip, &key);
        }
    }

    /// Puts an EndpointSlice in the place of an older state of it, which may have belonged to another Service.
    pub(super) fn set_slice(&mut self, old: Option<&EndpointSlice>, new: &EndpointSlice) {
        if let Some(old) = old {
            self.remove_slice(old);
        }
        self.serial = self.serial.wrapping_add(1);
        let Some((key, name)) = slice_key(new) else { return };
        let entry = SliceEntry::of(new);
        for endpoint in &entry.endpoints {
            self.endpoint_ips.entry(endpoint.ip).or_default().insert((key.clone(), name.clone()));
        }
        self.slices.entry(key).or_default().insert(name, entry);
    }

    /// Takes an EndpointSlice away.
    pub(super) fn remove_slice(&mut self, slice: &EndpointSlice) {
        self.serial = self.serial.wrapping_add(1);
        let Some((key, name)) = slice_key(slice) else { return };
        let Some(of_service) = self.slices.get_mut(&key) else { return };
        let removed = of_service.remove(&name);
        if of_service.is_empty() {
            self.slices.remove(&key);
        }
        let place = (key, name);
        for endpoint in removed.iter().flat_map(|slice| slice.endpoints.iter()) {
            drop_from(&mut self.endpoint_ips, &endpoint.ip, &place);
        }
    }

    /// Notes a namespace, or that it is gone.
    pub(super) fn set_namespace(&mut self, namespace: &Namespace, is_there: bool) {
        self.serial = self.serial.wrapping_add(1);
        let Some(key) = namespace.metadata.name.as_deref().and_then(label) else { return };
        if is_there {
            self.namespaces.insert(key.into());
        } else {
            self.namespaces.remove(&*key);
        }
    }

    /// A Service by its two labels.
    pub(super) fn service(&self, key: &[u8]) -> Option<&ServiceEntry> {
        self.services.get(key)
    }

    /// The slices of a Service.
    pub(super) fn slices(&self, key: &[u8]) -> impl Iterator<Item = &SliceEntry> {
        self.slices.get(key).into_iter().flat_map(BTreeMap::values)
    }

    /// Whether there is a namespace of that label.
    pub(super) fn has_namespace(&self, label: &[u8]) -> bool {
        self.namespaces.contains(label)
    }

    /// The Services that have an address.
    pub(super) fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = &Key> {
        self.service_ips.get(&ip).into_iter().flatten()
    }

    /// The endpoints at an address that have a name: those that were given one, and those of headless Services.
    pub(super) fn endpoints_at(&self, ip: IpAddr) -> impl Iterator<Item = (&Key, &EndpointEntry)> {
        let places = self.endpoint_ips.get(&ip).into_iter().flatten();
        places.flat_map(move |(key, slice)| {
            let is_headless = self.services.get(key).is_some_and(|service| service.target == entry::Target::Endpoints);
            let entry = self.slices.get(key).and_then(|of_service| of_service.get(slice));
            let endpoints = entry.into_iter().flat_map(|entry| entry.endpoints.iter());
            endpoints.filter(move |endpoint| endpoint.ip == ip && (endpoint.is_named || is_headless)).map(move |one| (key, one))
        })
    }
}

fn key_of(service: &Service) -> Option<Key> {
    entry::key(service.metadata.namespace.as_deref()?, service.metadata.name.as_deref()?)
}

fn slice_key(slice: &EndpointSlice) -> Option<(Key, Box<str>)> {
    Some((entry::key_of_slice(slice)?, slice.metadata.name.as_deref()?.into()))
}

fn drop_from<T: Ord>(map: &mut HashMap<IpAddr, BTreeSet<T>>, ip: &IpAddr, item: &T) {
    if let Some(items) = map.get_mut(ip) {
        items.remove(item);
        if items.is_empty() {
            map.remove(ip);
        }
    }
}
