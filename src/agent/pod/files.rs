//! The files that a pod's containers see from the agent: `/etc/hosts`, `/etc/resolv.conf` and the termination message. Their
//! texts are pure functions, in the kubelet's form.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Most search domains in a `resolv.conf`, the longest of them, and the longest line of them.
const MAX_SEARCH: usize = 32;
const MAX_SEARCH_DOMAIN: usize = 253;
const MAX_SEARCH_LINE: usize = 2_048;
/// Most name servers in a `resolv.conf`.
const MAX_NAMESERVERS: usize = 3;
/// Most bytes of a termination message.
pub const MAX_MESSAGE_BYTES: u64 = 4_096;

/// `/etc/hosts` of a pod with a network of its own.
pub fn hosts(pod: &Pod, pod_ip: IpAddr, domain: &str) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
        .to_owned();
    let host = hostname(pod);
    match fully_qualified(pod, domain) {
        Some(full) => text.push_str(&format!("{pod_ip}\t{full}\t{host}\n")),
        None => text.push_str(&format!("{pod_ip}\t{host}\n")),
    }
    let aliases: Vec<_> = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()).collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or(&[]).join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

/// The pod's host name: `spec.hostname`, or its name cut to 63 characters.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let chosen = spec.and_then(|spec| spec.hostname_override.as_ref().or(spec.hostname.as_ref())).filter(|name| !name.is_empty());
    let name = chosen.or(pod.metadata.name.as_ref()).cloned().unwrap_or_default();
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn fully_qualified(pod: &Pod, domain: &str) -> Option<String> {
    let subdomain = pod.spec.as_ref()?.subdomain.as_ref().filter(|subdomain| !subdomain.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    Some(format!("{}.{subdomain}.{namespace}.svc.{domain}", hostname(pod)))
}

/// The host name as the kernel of the sandbox has it: fully qualified where the pod asks for that.
pub fn sandbox_hostname(pod: &Pod, domain: &str) -> String {
    let wants_full = pod.spec.as_ref().is_some_and(|spec| spec.set_hostname_as_fqdn == Some(true));
    fully_qualified(pod, domain).filter(|_| wants_full).unwrap_or_else(|| hostname(pod))
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Resolver {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                // The same domain with and without the dot at its end counts once.
                Some("search") => {
                    resolver.search = words
                        .map(|word| word.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(word).to_owned())
                        .collect();
                }
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        resolver
    }

    fn print(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The text of a `resolv.conf`, and what had to be left out of it, in the words of the event `DNSConfigForming`.
#[derive(Debug, PartialEq, Eq)]
pub struct ResolvConf {
    pub text: String,
    pub warnings: Vec<String>,
}

/// `/etc/resolv.conf` by the pod's DNS policy, as the kubelet's `dns.Configurer` makes it. While no cluster DNS is served,
/// `ClusterFirst` means the host's resolvers.
pub fn resolv_conf(pod: &Pod, host: &str, cluster_dns: Option<IpAddr>, domain: &str) -> ResolvConf {
    let Some(spec) = &pod.spec else { return ResolvConf { text: host.to_owned(), warnings: Vec::new() } };
    let host = Resolver::parse(host);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let uses_cluster = policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && spec.host_network != Some(true);
    let mut resolver = match (policy, cluster_dns) {
        ("None", _) => Resolver::default(),
        (_, Some(dns)) if uses_cluster => cluster_resolver(pod, host, dns, domain),
        _ => host,
    };
    own_choices(spec, &mut resolver);
    let warnings = [fit_nameservers(&mut resolver.nameservers), fit_search(&mut resolver.search)];
    ResolvConf { text: resolver.print(), warnings: warnings.into_iter().flatten().collect() }
}

fn fit_nameservers(servers: &mut Vec<String>) -> Option<String> {
    if servers.len() <= MAX_NAMESERVERS {
        return None;
    }
    servers.truncate(MAX_NAMESERVERS);
    let line = servers.join(" ");
    Some(format!("Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"))
}

fn fit_search(search: &mut Vec<String>) -> Option<String> {
    let before = search.len();
    search.truncate(MAX_SEARCH);
    search.retain(|domain| domain.len() <= MAX_SEARCH_DOMAIN);
    while search.join(" ").len() > MAX_SEARCH_LINE {
        search.pop();
    }
    if search.len() == before {
        return None;
    }
    let line = search.join(" ");
    Some(format!("Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"))
}

fn cluster_resolver(pod: &Pod, host: Resolver, dns: IpAddr, domain: &str) -> Resolver {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut search = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    search.extend(host.search);
    Resolver { nameservers: vec![dns.to_string()], search: unique(search), options: vec!["ndots:5".to_owned()] }
}

fn own_choices(spec: &PodSpec, resolver: &mut Resolver) {
    let Some(own) = &spec.dns_config else { return };
    resolver.nameservers.extend(own.nameservers.iter().flatten().cloned());
    resolver.search.extend(own.searches.iter().flatten().cloned());
    resolver.nameservers = unique(std::mem::take(&mut resolver.nameservers));
    resolver.search = unique(std::mem::take(&mut resolver.search));
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = option
            .value
            .as_ref()
            .filter(|value| !value.is_empty())
            .map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        resolver.options.retain(|known| known.split(':').next() != Some(name));
        resolver.options.push(text);
    }
}

fn unique(list: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    list.into_iter().filter(|item| seen.insert(item.clone())).collect()
}

/// Where the termination message of one instance of a container is on the host.
pub fn termination_path(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir.join("containers").join(container).join(attempt.to_string())
}

/// Writes a file in place: containers that have it bound see the new content.
///
/// # Errors
/// As the file system has it.
pub async fn write_in_place(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    if tokio::fs::read(path).await.is_ok_and(|known| known == content) {
        return Ok(());
    }
    tokio::fs::write(path, content).await
}

/// The end of a json-file log as plain text: at most 80 lines and 2048 bytes, for `FallbackToLogsOnError`.
pub fn log_tail(log: &str) -> String {
    const LINES: usize = 80;
    const BYTES: usize = 2_048;
    let lines: Vec<String> = log
        .lines()
        .rev()
        .take(LINES)
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["log"].as_str().map(str::to_owned))
        .collect();
    let text: String = lines.into_iter().rev().collect();
    let mut start = text.len().saturating_sub(BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    #[test]
    fn hosts_file_as_the_kubelet_writes_it() {
        let plain = hosts(&pod(json!({"containers": []})), [10, 42, 0, 2].into(), "cluster.local");
        assert!(plain.ends_with("10.42.0.2\tweb-1\n"), "{plain}");
        let full = pod(json!({"containers": [], "hostname": "a", "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}));
        let text = hosts(&full, [10, 42, 0, 2].into(), "cluster.local");
        let end = "10.42.0.2\ta.s.shop.svc.cluster.local\ta\n\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn resolvers_by_policy() {
        let host = "search corp.example\nnameserver 192.0.2.53\noptions edns0\n";
        let dns = Some([10, 43, 0, 10].into());
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\n\
                       nameserver 10.43.0.10\noptions ndots:5\n";
        let own = json!({"containers": [], "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        let table = [
            (json!({"containers": []}), dns, cluster),
            (json!({"containers": [], "dnsPolicy": "ClusterFirst"}), None, host),
            (json!({"containers": [], "hostNetwork": true}), dns, host),
            (json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), dns, cluster),
            (json!({"containers": [], "dnsPolicy": "Default"}), dns, host),
            (own, dns, "search a\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"),
        ];
        for (spec, dns, expected) in table {
            let got = resolv_conf(&pod(spec.clone()), host, dns, "cluster.local");
            assert_eq!(got, ResolvConf { text: expected.to_owned(), warnings: Vec::new() }, "{spec}");
        }
    }

    #[test]
    fn what_is_too_much_is_left_out_and_said() {
        let long = "x".repeat(254);
        let many: Vec<String> = (0..40).map(|number| format!("d{number}.example")).collect();
        let wide: Vec<String> = (0..20).map(|number| format!("{number}{}", "y".repeat(150))).collect();
        let table = [
            (json!(["1.1.1.1", "2.2.2.2", "3.3.3.3"]), json!([]), 3, 3, "nameserver line is: 10.43.0.10 1.1.1.1 2.2.2.2"),
            (json!([]), json!(many), 1, 32, "search line is: shop.svc.cluster.local svc."),
            (json!([]), json!([long, "a"]), 1, 4, "search line is: shop.svc.cluster.local svc.cluster.local cluster.local a"),
            (json!([]), json!(wide), 1, 3 + 13, "search line is: shop."),
        ];
        for (nameservers, searches, servers, domains, words) in table {
            let spec = json!({"containers": [], "dnsConfig": {"nameservers": nameservers, "searches": searches}});
            let got = resolv_conf(&pod(spec), "", Some([10, 43, 0, 10].into()), "cluster.local");
            let resolver = Resolver::parse(&got.text);
            assert_eq!((resolver.nameservers.len(), resolver.search.len()), (servers, domains), "{words}");
            assert!(got.warnings.len() == 1 && got.warnings[0].contains(words), "{:?}", got.warnings);
        }
    }

    #[test]
    fn tail_of_a_log() {
        let log = "{\"log\":\"one\\n\",\"stream\":\"stdout\"}\n{\"log\":\"two\\n\",\"stream\":\"stderr\"}\n";
        assert_eq!(log_tail(log), "one\ntwo\n");
    }
}
