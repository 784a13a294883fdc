//! Commands that talk to the API as an administrator, with a kubeconfig.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::error::CmdError;
use crate::client::Client;
use crate::client::https::{Credentials, Https};
use crate::client::kubeconfig::Access;
use crate::client::servers::Servers;
use crate::http::connector::Endpoint;
use crate::http::tls::ClientTls;
use crate::rt::TaskGroup;

/// Where a server writes the admin's kubeconfig.
const DEFAULT: &str = "/etc/orch/kubeconfig";

/// The flag that all of them have.
#[derive(Debug, Clone, Args)]
pub struct AdminSettings {
    /// Kubeconfig of an administrator [default: KUBECONFIG, or /etc/orch/kubeconfig]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
}

/// The API, and what its kubeconfig says of it.
pub struct Admin {
    pub client: Client,
    pub access: Access,
}

impl AdminSettings {
    /// The file: the one given, else the first of `KUBECONFIG`, else the one that a server writes.
    fn path(&self) -> PathBuf {
        let from_environment = || {
            let all = std::env::var_os("KUBECONFIG")?;
            std::env::split_paths(&all).find(|path| !path.as_os_str().is_empty())
        };
        self.kubeconfig.clone().or_else(from_environment).unwrap_or_else(|| PathBuf::from(DEFAULT))
    }

    /// Reads the kubeconfig; connections are tasks of `tasks`.
    ///
    /// # Errors
    /// [`CmdError`] with the file and what is wrong with it.
    pub fn connect(&self, tasks: &TaskGroup) -> Result<Admin, CmdError> {
        let path = self.path();
        let unusable = |why: String| {
            CmdError::Setting(format!("cannot use the kubeconfig {}: {why}; --kubeconfig names another", path.display()))
        };
        let access = Access::load(&path).map_err(unusable)?;
        let identity = access.identity.as_ref().map(|(chain, key)| (chain.as_str(), key.as_str()));
        let tls = ClientTls::new(&access.trust, identity)?;
        let endpoint = Endpoint::parse(&access.server).map_err(|error| unusable(error.to_string()))?;
        let credentials = match &access.token {
            Some(token) => Credentials::bearer(token).map_err(|error| unusable(error.to_string()))?,
            None => Credentials::default(),
        };
        let transport = Https::to_servers(Servers::new("", vec![endpoint]), tls, credentials, tasks.child());
        let transport = transport.map_err(|error| unusable(error.to_string()))?;
        Ok(Admin { client: Client::new(transport, "orch/cli"), access })
    }
}

/// Prints a line to standard output. Whoever reads may have gone (`| head`), which is no error.
pub fn say(line: impl std::fmt::Display) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        tracing::debug!(%error, "nobody reads");
    }
}

/// Lines of columns, as kubectl prints them.
pub fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).chain([header[column].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        say(padded.join("   ").trim_end());
    };
    line(header.to_vec());
    rows.iter().for_each(|row| line(row.iter().map(String::as_str).collect()));
}
