//! The flags of `orch server` and `orch agent`, resolved once. Names are k3s's where it has one.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;

use super::cpu::CpuFlags;
use super::eviction::EvictionFlags;
use crate::agent::bootstrap::ClusterFacts;
use crate::registry::PortRange;

/// Flags that server and agent share.
#[derive(Debug, Clone, Args)]
pub struct CommonSettings {
    /// Folder that holds all state of this machine
    #[arg(long, env = "ORCH_DATA_DIR", default_value = "/var/lib/orch", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// YAML file whose keys are these flags [default: /etc/orch/config.yaml, if it exists]
    #[arg(long, env = "ORCH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log lines look
    #[arg(long, env = "ORCH_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,orch::store=debug
    #[arg(long, env = "ORCH_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// On whom what is kept of the node's resources is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Enforced {
    Pods,
    None,
}

/// Flags of the node, in `orch server` too.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub struct NodeSettings {
    /// Name of the node [default: the host's name]
    #[arg(long, env = "ORCH_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address that other nodes reach this one at [default: that of the default route]
    #[arg(long, env = "ORCH_NODE_IP", value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Address at which the node is reached from outside, shown as its ExternalIP
    #[arg(long, env = "ORCH_NODE_EXTERNAL_IP", value_name = "IP")]
    pub node_external_ip: Option<IpAddr>,
    /// Most pods that the node takes
    #[arg(long, env = "ORCH_MAX_PODS", default_value_t = 110, value_name = "NUMBER")]
    pub max_pods: u32,
    /// Most processes of one pod; -1 for no limit
    #[arg(long, env = "ORCH_POD_MAX_PIDS", default_value_t = -1, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..), value_name = "NUMBER")]
    pub pod_max_pids: i64,
    /// Label set when the node registers; may be repeated
    #[arg(long, env = "ORCH_NODE_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub node_label: Vec<String>,
    /// Taint set when the node registers; may be repeated
    #[arg(long, env = "ORCH_NODE_TAINT", value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    pub node_taint: Vec<String>,
    /// Port of the node's own HTTPS server (logs, exec, metrics)
    #[arg(long, env = "ORCH_KUBELET_PORT", default_value_t = 10250, value_name = "PORT")]
    pub kubelet_port: u16,
    /// Folder in which local volumes are made [default: DATA_DIR/storage]
    #[arg(long, env = "ORCH_DEFAULT_LOCAL_STORAGE_PATH", value_name = "DIR")]
    pub default_local_storage_path: Option<PathBuf>,
    /// Socket of the Docker engine [default: DOCKER_HOST, or unix:///var/run/docker.sock]
    #[arg(long, env = "ORCH_DOCKER_HOST", value_name = "URL")]
    pub docker_host: Option<String>,
    /// Folder of static pods' manifests [default: DATA_DIR/agent/static]
    #[arg(long, env = "ORCH_POD_MANIFEST_PATH", value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Resources that are kept for the system: cpu=100m,memory=200Mi,ephemeral-storage=1Gi
    #[arg(long, env = "ORCH_SYSTEM_RESERVED", default_value = "", value_name = "AMOUNTS")]
    pub system_reserved: String,
    /// Resources that are kept for orch and Docker
    #[arg(long, env = "ORCH_KUBE_RESERVED", default_value = "", value_name = "AMOUNTS")]
    pub kube_reserved: String,
    /// Whether the kernel keeps all pods together within what the node has for them, as well as evictions do
    #[arg(long, env = "ORCH_ENFORCE_NODE_ALLOCATABLE", default_value = "pods", value_enum, value_name = "pods|none")]
    pub enforce_node_allocatable: Enforced,
    /// Sysctl, or prefix that ends in *, which pods may set though it is not safe; may be repeated
    #[arg(long, env = "ORCH_ALLOWED_UNSAFE_SYSCTLS", value_name = "NAME", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// File with mirrors of registries, credentials and certificates, in k3s' form
    #[arg(long, env = "ORCH_PRIVATE_REGISTRY", default_value = "/etc/orch/registries.yaml", value_name = "FILE")]
    pub private_registry: PathBuf,
    /// Size at which a container's log file is rotated
    #[arg(long, env = "ORCH_CONTAINER_LOG_MAX_SIZE", default_value = "10Mi", value_name = "SIZE")]
    pub container_log_max_size: String,
    /// Most files of a container's log, the one that is written among them
    #[arg(long, env = "ORCH_CONTAINER_LOG_MAX_FILES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=1000), value_name = "NUMBER")]
    pub container_log_max_files: u32,
    /// Percent of the engine's disk above which unused images that were pulled are removed; 100 never does
    #[arg(long, env = "ORCH_IMAGE_GC_HIGH_THRESHOLD", default_value_t = 85, value_parser = clap::value_parser!(u64).range(1..=100), value_name = "PERCENT")]
    pub image_gc_high_threshold: u64,
    /// Percent of the engine's disk down to which they are removed
    #[arg(long, env = "ORCH_IMAGE_GC_LOW_THRESHOLD", default_value_t = 80, value_parser = clap::value_parser!(u64).range(0..=99), value_name = "PERCENT")]
    pub image_gc_low_threshold: u64,
    /// How long an image is unused before it is removed for that
    #[arg(long, env = "ORCH_MINIMUM_IMAGE_TTL_DURATION", default_value = "2m", value_parser = duration, value_name = "TIME")]
    pub minimum_image_ttl_duration: Duration,
    #[command(flatten)]
    pub cpu: CpuFlags,
    #[command(flatten)]
    pub eviction: EvictionFlags,
}

/// Flags of the pod and service network; the same on all servers, which tell them to the nodes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub struct ClusterSettings {
    /// Range of pod addresses; each node gets a /24 of it
    #[arg(long, env = "ORCH_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: Ipv4Net,
    /// Range of Service addresses
    #[arg(long, env = "ORCH_SERVICE_CIDR", default_value = "10.43.0.0/16", value_name = "CIDR")]
    pub service_cidr: Ipv4Net,
    /// Ports of Services that every node opens (NodePort); outside of the range from which the kernel takes ports for connections
    #[arg(long, env = "ORCH_SERVICE_NODE_PORT_RANGE", default_value_t = PortRange::NODE_PORTS, value_name = "FIRST-LAST")]
    pub service_node_port_range: PortRange,
    /// Address of the cluster's DNS [default: the tenth of --service-cidr]
    #[arg(long, env = "ORCH_CLUSTER_DNS", value_name = "IP")]
    pub cluster_dns: Option<IpAddr>,
    /// Domain of the cluster's DNS
    #[arg(long, env = "ORCH_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "DOMAIN")]
    pub cluster_domain: String,
}

impl ClusterSettings {
    /// The address of the cluster's DNS: the one given, else the tenth of the Service range.
    pub fn cluster_dns(&self) -> IpAddr {
        let tenth = u32::from(self.service_cidr.network()).wrapping_add(10);
        self.cluster_dns.unwrap_or_else(|| IpAddr::V4(tenth.into()))
    }

    /// What every node is told.
    pub fn facts(&self) -> ClusterFacts {
        ClusterFacts {
            cluster_cidr: self.cluster_cidr,
            service_cidr: self.service_cidr,
            cluster_dns: self.cluster_dns(),
            cluster_domain: self.cluster_domain.clone(),
        }
    }
}

/// Flags of `orch server`.
#[derive(Debug, Clone, Args)]
pub struct ServerSettings {
    #[command(flatten)]
    pub common: CommonSettings,
    /// Address that the API listens on
    #[arg(long, env = "ORCH_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    /// Port that the API listens on
    #[arg(long, env = "ORCH_HTTPS_LISTEN_PORT", default_value_t = 6443, value_name = "PORT")]
    pub https_listen_port: u16,
    /// Name or address to add to the API's certificate; may be repeated
    #[arg(long, env = "ORCH_TLS_SAN", value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Secret that joins agents [default: made at the first start and kept in DATA_DIR/token]
    #[arg(long, env = "ORCH_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Where to write the admin's kubeconfig
    #[arg(long, env = "ORCH_WRITE_KUBECONFIG", default_value = "/etc/orch/kubeconfig", value_name = "FILE")]
    pub write_kubeconfig: PathBuf,
    /// Run no node in this process (in a configuration file: true or false)
    #[arg(long, env = "ORCH_DISABLE_AGENT", num_args = 0..=1, default_missing_value = "true", default_value = "false", require_equals = true, value_parser = clap::builder::BoolishValueParser::new(), value_name = "BOOL", hide_possible_values = true)]
    pub disable_agent: bool,
    /// Built-in component to go without; may be repeated
    #[arg(long, env = "ORCH_DISABLE", value_name = "COMPONENT", value_delimiter = ',', value_enum)]
    pub disable: Vec<Component>,
    #[command(flatten)]
    pub failure: FailureSettings,
    #[command(flatten)]
    pub cluster: ClusterSettings,
    #[command(flatten)]
    pub node: NodeSettings,
}

/// Flags of what happens when a node is lost; the same on all servers.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Lost nodes")]
pub struct FailureSettings {
    /// Silence after which a node counts as lost
    #[arg(long, env = "ORCH_NODE_MONITOR_GRACE_PERIOD", default_value = "40s", value_parser = duration, value_name = "TIME")]
    pub node_monitor_grace_period: Duration,
    /// Seconds for which a pod stays on a node that is not ready, unless it says otherwise
    #[arg(long, env = "ORCH_DEFAULT_NOT_READY_TOLERATION_SECONDS", default_value_t = 300, value_name = "SECONDS")]
    pub default_not_ready_toleration_seconds: u32,
    /// Seconds for which a pod stays on a node that is unreachable, unless it says otherwise
    #[arg(long, env = "ORCH_DEFAULT_UNREACHABLE_TOLERATION_SECONDS", default_value_t = 300, value_name = "SECONDS")]
    pub default_unreachable_toleration_seconds: u32,
}

/// Reads `40s`, `1m30s`, `2h`: the durations of Kubernetes' flags, in whole units.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not of the form 40s, 1m30s or 2h");
    let (mut seconds, mut number) = (0_u64, String::new());
    for letter in text.chars() {
        let unit = match letter {
            'h' => 3_600,
            'm' => 60,
            's' => 1,
            digit if digit.is_ascii_digit() => {
                number.push(digit);
                continue;
            }
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        seconds = count.checked_mul(unit).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
    }
    if seconds == 0 || !number.is_empty() { Err(wrong()) } else { Ok(Duration::from_secs(seconds)) }
}

/// A component that `orch server` can go without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Component {
    /// The load balancer that gives Services the addresses of nodes
    #[value(name = "servicelb")]
    ServiceLb,
}

/// Flags of `orch agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentSettings {
    #[command(flatten)]
    pub common: CommonSettings,
    /// URL of a server; may be repeated. The others are learned from it
    #[arg(long, visible_alias = "server", env = "ORCH_JOIN", value_name = "URL", value_delimiter = ',', required = true)]
    pub join: Vec<String>,
    /// Token of the cluster (`orch token create`, or DATA_DIR/token on a server); not needed once the node has joined
    #[arg(long, env = "ORCH_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Address that the node's own HTTPS server listens on
    #[arg(long, env = "ORCH_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    #[command(flatten)]
    pub node: NodeSettings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_kubernetes() {
        for (text, seconds) in
            [("40s", Some(40)), ("1m30s", Some(90)), ("2h", Some(7_200)), ("40", None), ("s", None), ("0s", None)]
        {
            assert_eq!(duration(text).ok().map(|time| time.as_secs()), seconds, "{text}");
        }
    }
}
