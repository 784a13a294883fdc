//! `orch uninstall`: takes away all that `orch` made on this machine, and nothing else.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::admin::say;
use super::error::CmdError;
use super::host;
use super::installed::{Installed, NodeLock};
use crate::agent::cleanup::{Remains, STEPS};
use crate::cri::docker::{Docker, DockerConfig};
use crate::network::NetworkConfig;
use crate::rt::TaskGroup;

/// Flags of `orch uninstall`.
#[derive(Debug, Clone, Args)]
pub struct UninstallSettings {
    /// Folder that holds all state of this machine
    #[arg(long, env = "ORCH_DATA_DIR", default_value = "/var/lib/orch", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// The kubeconfig that a server wrote
    #[arg(long, env = "ORCH_WRITE_KUBECONFIG", default_value = "/etc/orch/kubeconfig", value_name = "FILE")]
    pub write_kubeconfig: PathBuf,
    /// Keep the cluster's data, certificates and tokens: containers, network and mounts go
    #[arg(long)]
    pub keep_data: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Removes everything.
///
/// # Errors
/// [`CmdError`] when it runs, when nobody agreed, or when something could not be removed.
pub async fn run(settings: UninstallSettings) -> Result<(), CmdError> {
    if !host::is_root() {
        return Err(CmdError::Setting("containers, interfaces and mounts are removed by root: run this with sudo".to_owned()));
    }
    let data_dir = &settings.data_dir;
    if !data_dir.exists() {
        say(format_args!("nothing is installed in {}", data_dir.display()));
        return Ok(());
    }
    if !looks_like_ours(data_dir) {
        return Err(CmdError::Setting(format!("{} is no data directory of orch; --data-dir names it", data_dir.display())));
    }
    agreed(&settings)?;
    let lock = idle(data_dir)?;
    let mut failed = clean_node(&data_dir.join("agent")).await?;
    if !settings.keep_data {
        failed.extend(remove_kubeconfig(&settings));
        if failed.is_empty() {
            let removed = std::fs::remove_dir_all(data_dir);
            failed.extend(removed.err().map(|error| format!("{}: {error}", data_dir.display())));
            say(format_args!("removed folder {}", data_dir.display()));
        }
    }
    drop(lock);
    if failed.is_empty() {
        say(if settings.keep_data { "done; the data is kept" } else { "done; nothing is left" });
        return Ok(());
    }
    Err(CmdError::Setting(format!("not everything could be removed; run this again when it is gone: {}", failed.join("; "))))
}

fn looks_like_ours(data_dir: &Path) -> bool {
    ["agent/owner", "agent/pki", "agent/node-password", "agent/node.lock", "store", "pki/server-ca.crt", "token"]
        .iter()
        .any(|name| data_dir.join(name).exists())
}

fn agreed(settings: &UninstallSettings) -> Result<(), CmdError> {
    if settings.yes {
        return Ok(());
    }
    let what = if settings.keep_data { "containers, network and mounts" } else { "all pods and all data" };
    if !std::io::stdin().is_terminal() {
        return Err(CmdError::Setting(format!("this removes {what} of this machine; --yes says that you mean it")));
    }
    eprint!("This removes {what} of orch on this machine ({}). Type yes to go on: ", settings.data_dir.display());
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer).map_err(|error| CmdError::Setting(error.to_string()))?;
    if read > 0 && answer.trim() == "yes" { Ok(()) } else { Err(CmdError::Setting("nothing was removed".to_owned())) }
}

/// Makes sure that no process works on the folder.
fn idle(data_dir: &Path) -> Result<NodeLock, CmdError> {
    let unusable = |source| CmdError::DataDir { path: data_dir.to_owned(), source };
    let running = || {
        CmdError::Setting(format!(
            "orch runs on {}: stop it first (systemctl stop orch-server orch-agent, or the process itself)",
            data_dir.display()
        ))
    };
    let store = data_dir.join("store/lock");
    if store.exists() {
        let file = std::fs::File::options().write(true).open(&store).map_err(unusable)?;
        file.try_lock().map_err(|_| running())?;
    }
    NodeLock::take(&data_dir.join("agent")).map_err(unusable)?.ok_or_else(running)
}

/// Takes away what the node made outside of its folder; returns what could not be.
async fn clean_node(agent_dir: &Path) -> Result<Vec<String>, CmdError> {
    let unusable = |source| CmdError::DataDir { path: agent_dir.to_owned(), source };
    let Some(installed) = Installed::read(agent_dir).map_err(unusable)? else { return Ok(Vec::new()) };
    let owner = std::fs::read_to_string(agent_dir.join("owner")).map_err(unusable)?.trim().to_owned();
    let docker = Docker::connect(DockerConfig { host: installed.docker_host.clone(), owner });
    let docker = docker.map_err(|error| CmdError::Setting(error.to_string()))?;
    let pod_cidr = std::fs::read_to_string(agent_dir.join("pod-cidr")).ok().and_then(|text| text.trim().parse().ok());
    let network = pod_cidr.zip(installed.cluster_cidr()).map(|(pod_cidr, cluster_cidr)| NetworkConfig {
        node: installed.node.clone(),
        pod_cidr,
        cluster_cidr,
        mtu: 1_500,
    });
    let tasks = TaskGroup::new();
    let remains = Remains { data_dir: agent_dir.to_owned(), runtime: Arc::new(docker), network, tasks: tasks.clone() };
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        match step(&remains).await {
            Ok(gone) => gone.iter().for_each(|what| say(format_args!("removed {what}"))),
            Err(why) => failed.push(format!("{name}: {why}")),
        }
    }
    tasks.shutdown(std::time::Duration::from_secs(2)).await;
    Ok(failed)
}

/// Removes the kubeconfig, if it is this cluster's.
fn remove_kubeconfig(settings: &UninstallSettings) -> Option<String> {
    let path = &settings.write_kubeconfig;
    let ca = std::fs::read_to_string(settings.data_dir.join("pki/server-ca.crt")).ok()?;
    let written = std::fs::read_to_string(path).ok()?;
    if !written.contains(&crate::client::kubeconfig::encoded(&ca)) {
        return None;
    }
    say(format_args!("removed {}", path.display()));
    std::fs::remove_file(path).err().map(|error| format!("{}: {error}", path.display()))
}
