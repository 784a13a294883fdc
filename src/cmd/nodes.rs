//! `orch node`: which nodes there are, and whose their names are.

use std::time::Duration;

use clap::{Args, Subcommand};
use k8s_openapi::api::core::v1::{Node, Secret};

use super::admin::{Admin, AdminSettings, print_table, say};
use super::error::CmdError;
use crate::client::{ClientError, DeleteOptions};
use crate::controllers::node_identity::secret_name;
use crate::rt::TaskGroup;

const NAMESPACE: &str = "kube-system";
/// Time for a node's identity to end, which the leader sees to.
const REMOVAL: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(200);

/// What `orch node` takes.
#[derive(Debug, Clone, Args)]
pub struct NodeCommand {
    #[command(flatten)]
    pub admin: AdminSettings,
    #[command(subcommand)]
    pub action: Action,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Action {
    /// List the nodes, and whether their name is bound to a machine
    List,
    /// Free the name of a node for another machine: the old one's certificates are good no more
    Replace {
        /// Name of the node
        name: String,
    },
}

/// Runs it.
///
/// # Errors
/// [`CmdError`].
pub async fn run(command: NodeCommand) -> Result<(), CmdError> {
    let tasks = TaskGroup::new();
    let Admin { client, .. } = command.admin.connect(&tasks)?;
    match command.action {
        Action::List => {
            let nodes = client.list::<Node>("", "").await?;
            let secrets = client.list::<Secret>(NAMESPACE, "fieldSelector=type%3Dorch.io/node-password").await?;
            let has_identity =
                |name: &str| secrets.items.iter().any(|secret| secret.metadata.name.as_deref() == Some(&secret_name(name)));
            let rows: Vec<Vec<String>> = nodes.items.iter().map(|node| row(node, &has_identity)).collect();
            print_table(&["NAME", "STATUS", "ROLES", "INTERNAL-IP", "VERSION", "IDENTITY"], &rows);
        }
        Action::Replace { name } => {
            let node = gone(client.delete::<Node>("", &name, &DeleteOptions::default()).await)?;
            // The leader ends the identity with the node; one that never registered has no node to go with.
            let secret = gone(client.delete::<Secret>(NAMESPACE, &secret_name(&name), &DeleteOptions::default()).await)?;
            if !node && !secret {
                return Err(CmdError::Setting(format!("there is no node {name:?} (orch node list)")));
            }
            let wait = async {
                while client.get::<Node>("", &name).await.is_ok() {
                    tokio::time::sleep(LOOK).await;
                }
            };
            if tokio::time::timeout(REMOVAL, wait).await.is_err() {
                return Err(CmdError::Setting(format!("node {name:?} is still being removed; see kubectl get node {name}")));
            }
            say(format_args!(
                "node {name:?} was removed, and its certificates are good no more; another machine may join under this name"
            ));
        }
    }
    tasks.shutdown(Duration::from_secs(1)).await;
    Ok(())
}

/// Whether something was deleted.
fn gone(deleted: Result<(), ClientError>) -> Result<bool, ClientError> {
    match deleted {
        Ok(()) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

fn row(node: &Node, has_identity: &dyn Fn(&str) -> bool) -> Vec<String> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let mut shown = if ready { "Ready" } else { "NotReady" }.to_owned();
    if unschedulable {
        shown.push_str(",SchedulingDisabled");
    }
    let labels = node.metadata.labels.iter().flatten();
    let roles: Vec<&str> = labels.filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/")).collect();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let addresses = status.addresses.unwrap_or_default();
    let address = addresses.iter().find(|address| address.type_ == "InternalIP").map(|address| address.address.clone());
    let version = status.node_info.map(|info| info.kubelet_version).unwrap_or_default();
    let identity = if has_identity(&name) { "bound" } else { "none" }.to_owned();
    vec![name, shown, roles, address.unwrap_or_else(|| "<none>".to_owned()), version, identity]
}
