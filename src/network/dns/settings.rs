//! What users say in the ConfigMap `kube-system/orch-dns`: `hosts` (as /etc/hosts), `stubDomains` and `upstreamNameservers` (JSON, as
//! kube-dns had them). A key that does not parse keeps its last good value, and the user is told.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::ConfigMap;

use super::forward::Routes;
use super::name::Name;

/// Where the settings are.
pub(super) const NAMESPACE: &str = "kube-system";
pub(super) const NAME: &str = "orch-dns";
const KEYS: [&str; 3] = ["hosts", "stubDomains", "upstreamNameservers"];

/// Names and addresses that a user lists.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Hosts {
    by_name: HashMap<Box<[u8]>, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, Vec<Name>>,
}

impl Hosts {
    /// Reads lines of an address and its names; `#` begins a comment.
    fn parse(text: &str) -> Result<Self, String> {
        let mut hosts = Self::default();
        for (at, line) in text.lines().enumerate() {
            let wrong = |what: &str| format!("line {}: {what}: {line:?}", at + 1);
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let Some(address) = words.next() else { continue };
            let address: IpAddr = address.parse().map_err(|_| wrong("not an address"))?;
            for word in words {
                let name = Name::from_text(word).ok_or_else(|| wrong("not a name"))?;
                hosts.by_name.entry(name.wire().into()).or_default().push(address);
                hosts.by_address.entry(address).or_default().push(name);
            }
        }
        Ok(hosts)
    }

    /// The addresses of a name; `None` if it is not listed.
    pub(super) fn addresses(&self, name: &Name) -> Option<&[IpAddr]> {
        if self.by_name.is_empty() {
            return None;
        }
        self.by_name.get(name.wire()).map(Vec::as_slice)
    }

    /// The names of an address.
    pub(super) fn names(&self, address: IpAddr) -> &[Name] {
        self.by_address.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Whether nothing is listed.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// All settings.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) hosts: Hosts,
    pub(super) routes: Routes,
}

impl Settings {
    /// The settings that a ConfigMap says after these, and what is wrong with it.
    pub(super) fn updated(&self, map: Option<&ConfigMap>) -> (Self, Vec<String>) {
        let text = |key: &str| map.and_then(|map| map.data.as_ref()).and_then(|data| data.get(key)).map_or("", String::as_str);
        let mut next = self.clone();
        let mut wrong = Vec::new();
        let mut note = |key: &str, why: String| wrong.push(format!("{key}: {why}"));
        match Hosts::parse(text("hosts")) {
            Ok(hosts) => next.hosts = hosts,
            Err(why) => note("hosts", why),
        }
        match stub_domains(text("stubDomains")) {
            Ok(stubs) => next.routes.stubs = stubs,
            Err(why) => note("stubDomains", why),
        }
        match upstream_servers(text("upstreamNameservers")) {
            Ok(list) => next.routes.servers = list,
            Err(why) => note("upstreamNameservers", why),
        }
        for key in map.and_then(|map| map.data.as_ref()).into_iter().flat_map(BTreeMap::keys) {
            if !KEYS.contains(&key.as_str()) {
                wrong.push(format!("{key}: not a setting; these are: {}", KEYS.join(", ")));
            }
        }
        (next, wrong)
    }
}

fn stub_domains(text: &str) -> Result<Vec<(Name, Vec<SocketAddr>)>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let map: BTreeMap<String, Vec<String>> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let stub = |(domain, list): (String, Vec<String>)| {
        let name = Name::from_text(&domain).ok_or_else(|| format!("{domain:?} is not a domain"))?;
        if list.is_empty() { Err(format!("{domain:?} has no server")) } else { Ok((name, servers(&list)?)) }
    };
    map.into_iter().map(stub).collect()
}

fn upstream_servers(text: &str) -> Result<Vec<SocketAddr>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    servers(&serde_json::from_str::<Vec<String>>(text).map_err(|error| error.to_string())?)
}

/// `1.2.3.4`, `1.2.3.4:5353`, `fd00::1`, `[fd00::1]:5353`.
fn servers(list: &[String]) -> Result<Vec<SocketAddr>, String> {
    let server = |text: &String| {
        let plain = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        plain.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is not an address"))
    };
    list.iter().map(server).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_good_value_stays() {
        let map = |data: serde_json::Value| -> ConfigMap { serde_json::from_value(json!({"data": data})).unwrap() };
        let good = map(json!({
            "hosts": "# ours\n10.0.0.1 db.corp DB2.corp # two\n\nfd00::1 db.corp\n",
            "stubDomains": "{\"acme.local\": [\"1.2.3.4\", \"1.2.3.5:5353\"]}",
            "upstreamNameservers": "[\"8.8.8.8\", \"[fd00::1]:54\"]",
        }));
        let (first, wrong) = Settings::default().updated(Some(&good));
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(first.hosts.addresses(&Name::from_text("db.corp").unwrap()).unwrap().len(), 2);
        assert_eq!(first.hosts.names([10, 0, 0, 1].into()).len(), 2);
        assert_eq!(first.routes.stubs[0].1[1].to_string(), "1.2.3.5:5353");
        assert_eq!(first.routes.servers[1].to_string(), "[fd00::1]:54");
        let bad = map(
            json!({"hosts": "10.0.0.1 a\n10.0.0 x", "stubDomains": "{\"a\": []}", "upstreamNameservers": "8.8.8.8", "host": "x"}),
        );
        let (second, wrong) = first.updated(Some(&bad));
        assert_eq!(second, first);
        assert_eq!(wrong.len(), 4);
        assert_eq!(wrong[3], "host: not a setting; these are: hosts, stubDomains, upstreamNameservers");
        assert!(wrong[0].starts_with("hosts: line 2: not an address"), "{wrong:?}");
        assert_eq!(first.updated(None).0, Settings::default());
    }
}
