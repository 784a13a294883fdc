//! Why a command ended, in words that say what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A failure that ends the process.
#[derive(Debug, thiserror::Error)]
pub enum CmdError {
    #[error(
        "a node needs root, for containers and network interfaces: run this with sudo, or a control plane alone with --disable-agent"
    )]
    NotRoot,
    #[error("{0}")]
    Setting(String),
    #[error("cannot listen on {address}: {why}")]
    Listen { address: SocketAddr, why: String },
    #[error("cannot use the data directory {path}")]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("cannot write the kubeconfig {path}; --write-kubeconfig names another")]
    Kubeconfig { path: PathBuf, source: std::io::Error },
    #[error("cannot open the store")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot use the cluster's certificates")]
    Pki(#[from] crate::pki::PkiError),
    #[error("cannot set up TLS")]
    Tls(#[from] crate::http::tls::TlsError),
    #[error("cannot create what every cluster has")]
    Bootstrap(#[from] crate::api::ApiError),
    #[error("cannot start the node")]
    Node(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the API refused")]
    Api(#[from] crate::client::ClientError),
    #[error(
        "node {name:?} was removed from the cluster, and its certificates are good no more. Its containers still run; `orch uninstall` \
         removes them. To join again, start the agent with a token: on a server, `orch token create --print-join-command` prints how"
    )]
    Removed { name: String },
    #[error("the background task {0:?} ended; see the log above")]
    Background(String),
}

impl CmdError {
    /// The error of binding a listener, with the cure.
    pub fn listen(address: SocketAddr, error: &std::io::Error, flag: &str) -> Self {
        let why = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "the port is taken (by another orch? `ss -ltnp 'sport = :{}'` shows by whom); --{flag} chooses another",
                    address.port()
                )
            }
            std::io::ErrorKind::AddrNotAvailable => "it is no address of this machine; --bind-address chooses another".to_owned(),
            std::io::ErrorKind::PermissionDenied => format!("ports below 1024 need root; --{flag} chooses another"),
            _ => error.to_string(),
        };
        Self::Listen { address, why }
    }

    /// The code that the process ends with. A service manager does not start a node again that was removed.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Removed { .. }) { 77 } else { 1 }
    }

    /// The message with its causes.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
