//! The flags of `orch server` and `orch agent`, resolved once. Names are k3s's where it has one.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::Ipv4Net;

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
}

/// Flags of the pod and service network; the same on all servers.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Network")]
pub struct ClusterSettings {
    /// Range of pod addresses; each node gets a /24 of it
    #[arg(long, env = "ORCH_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_name = "CIDR")]
    pub cluster_cidr: Ipv4Net,
    /// Range of Service addresses
    #[arg(long, env = "ORCH_SERVICE_CIDR", default_value = "10.43.0.0/16", value_name = "CIDR")]
    pub service_cidr: Ipv4Net,
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
    #[command(flatten)]
    pub cluster: ClusterSettings,
    #[command(flatten)]
    pub node: NodeSettings,
}

/// Flags of `orch agent`.
#[derive(Debug, Clone, Args)]
pub struct AgentSettings {
    #[command(flatten)]
    pub common: CommonSettings,
    /// URL of a server
    #[arg(long, visible_alias = "server", env = "ORCH_JOIN", value_name = "URL")]
    pub join: String,
    /// Token of the cluster: the content of DATA_DIR/token on a server
    #[arg(long, env = "ORCH_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Address that the node's own HTTPS server listens on
    #[arg(long, env = "ORCH_BIND_ADDRESS", default_value = "0.0.0.0", value_name = "IP")]
    pub bind_address: IpAddr,
    #[command(flatten)]
    pub cluster: ClusterSettings,
    #[command(flatten)]
    pub node: NodeSettings,
}
