//! The rules that pods need: pod traffic to the outside leaves with the node's address, a pod sends with its own address only, and
//! what Docker's FORWARD chain would drop is let through.
//!
//! They live in a table of the node's own (nftables); where the kernel has no nf_tables, masquerading alone in a chain of iptables.
//! The accepts must stand in `DOCKER-USER`: an accept in a table of one's own does not undo a drop in Docker's. Names carry a hash
//! of the node's name, so several nodes share a machine. Everything here can be repeated, and is when somebody changes it ([`watch`]).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::NetworkError;
use super::attach::hex;

mod accepts;
mod table;
pub(super) mod watch;

use table::PodTable;

/// A rule command that takes longer is stuck.
const COMMAND: Duration = Duration::from_secs(20);
/// Where the commands are, beside PATH.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// Where accepts may stand.
const FORWARD_CHAINS: [&str; 2] = ["DOCKER-USER", "FORWARD"];

/// The rules of one node.
pub(super) struct Firewall {
    /// `orch-` and a hash of the node's name.
    name: String,
    pod_cidr: Ipv4Net,
    cluster_cidr: Ipv4Net,
    table: PodTable,
    /// Nodes that know the way back to pods, once they are known: what pods send to them is not masqueraded.
    nodes: Mutex<Option<Vec<Ipv4Addr>>>,
    /// The iptables chain as it was last set.
    chain: Mutex<Option<String>>,
}

impl Firewall {
    pub(super) fn new(node: &str, pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net) -> Self {
        let (name, pod_cidr, cluster_cidr) = (format!("orch-{}", &hex(node)[..8]), pod_cidr.trunc(), cluster_cidr.trunc());
        let table = PodTable::new(&name, node, pod_cidr, cluster_cidr);
        Self { name, pod_cidr, cluster_cidr, table, nodes: Mutex::default(), chain: Mutex::default() }
    }

    /// The addresses of nodes to which pods' packets keep their source. Returns whether that is news.
    pub(super) fn set_nodes(&self, nodes: Vec<Ipv4Addr>) -> bool {
        let mut known = self.nodes.lock();
        let is_news = known.as_ref() != Some(&nodes);
        *known = Some(nodes);
        is_news
    }

    /// Sets what is missing: forwarding, masquerading, accepts.
    ///
    /// # Errors
    /// The command or the operation that failed, with its words.
    pub(super) async fn ensure(&self) -> Result<(), NetworkError> {
        forward().await?;
        let nodes = self.nodes.lock().clone();
        if let Err(error) = self.table.ensure(nodes.as_deref()).await {
            let masquerade = NetworkError::step("masquerade pod traffic", error);
            tracing::debug!(error = %masquerade, "no nf_tables; iptables does it");
            self.ensure_chain(nodes.as_deref().unwrap_or_default()).await.map_err(|error| {
                tracing::debug!(%error, "nor does iptables");
                masquerade
            })?;
        }
        self.ensure_accepts().await
    }

    /// Takes all rules of the node away.
    ///
    /// # Errors
    /// As [`ensure`](Self::ensure).
    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        let removed = self.table.remove().await;
        let Some(iptables) = find("iptables") else {
            return match removed {
                Ok(()) => self.remove_accepts().await,
                // There neither is one nor a chain of iptables.
                Err(error) if error.is_unsupported() => Ok(()),
                Err(error) => Err(NetworkError::step("remove the table of the pod network", error)),
            };
        };
        for chain in FORWARD_CHAINS {
            for rule in self.accepts() {
                // That the rule is not there is what was wanted.
                while run(&iptables, &arguments("-D", chain, &rule), "").await.is_ok() {}
            }
        }
        if removed.is_err() {
            let jump = self.jump();
            while run(&iptables, &nat(&arguments("-D", "POSTROUTING", &jump)), "").await.is_ok() {}
            for action in ["-F", "-X"] {
                if let Err(error) = run(&iptables, &nat(&[action, &self.name]), "").await {
                    tracing::debug!(%error, "the chain was not there");
                }
            }
        }
        Ok(())
    }

    async fn ensure_chain(&self, nodes: &[Ipv4Addr]) -> Result<(), NetworkError> {
        let Some(iptables) = find("iptables") else {
            return Err(NetworkError::step("masquerade pod traffic", "iptables is not installed"));
        };
        let (jump, rules) = (self.jump(), self.chain_rules(nodes));
        let has_jump = run(&iptables, &nat(&arguments("-C", "POSTROUTING", &jump)), "").await.is_ok();
        if has_jump && self.chain.lock().as_ref() == Some(&rules) {
            return Ok(());
        }
        let Some(restore) = find("iptables-restore") else {
            return Err(NetworkError::step("masquerade pod traffic", "iptables-restore is not installed"));
        };
        run(&restore, &["--noflush", "--wait", "5"], &rules).await?;
        *self.chain.lock() = Some(rules);
        if has_jump {
            return Ok(());
        }
        run(&iptables, &nat(&arguments("-A", "POSTROUTING", &jump)), "").await.map(drop)
    }

    /// What iptables-restore is fed: the chain is made anew.
    fn chain_rules(&self, nodes: &[Ipv4Addr]) -> String {
        let Self { name, pod_cidr, cluster_cidr, .. } = self;
        let to_nodes: String = nodes.iter().map(|ip| format!("-A {name} -d {ip} -j RETURN\n")).collect();
        format!("*nat\n:{name} - [0:0]\n{to_nodes}-A {name} -s {pod_cidr} ! -d {cluster_cidr} -j MASQUERADE\nCOMMIT\n")
    }

    fn jump(&self) -> Vec<String> {
        vec!["-j".to_owned(), self.name.clone()]
    }

    async fn ensure_accepts(&self) -> Result<(), NetworkError> {
        let Some(iptables) = find("iptables") else {
            let set = async { accepts::ensure(&self.table.nft()?, &self.name, self.cluster_cidr).await };
            return set.await.map_err(|error| NetworkError::step("let pod traffic through", error));
        };
        let forward = run(&iptables, &["-w", "5", "-S", "FORWARD"], "").await?;
        // Docker makes its chain, and a jump to it; where either is missing (`iptables -F` leaves the policy), the chain itself.
        let user = run(&iptables, &["-w", "5", "-S", "DOCKER-USER"], "").await.ok();
        let is_reached = forward.contains("-j DOCKER-USER");
        let (chain, rules) = match user.filter(|_| is_reached) {
            Some(rules) => ("DOCKER-USER", rules),
            None => ("FORWARD", forward),
        };
        for rule in self.accepts() {
            if !rules.contains(&rule.join(" ")) {
                run(&iptables, &arguments("-I", chain, &rule), "").await?;
            }
        }
        Ok(())
    }

    async fn remove_accepts(&self) -> Result<(), NetworkError> {
        let removed = async { accepts::remove(&self.table.nft()?, &self.name).await };
        removed.await.map_err(|error| NetworkError::step("remove what let pod traffic through", error))
    }

    /// Two rules, as `iptables -S` prints them: from pods, to pods; those of other nodes too, to which a NodePort may lead.
    fn accepts(&self) -> [Vec<String>; 2] {
        ["-s", "-d"].map(|direction| {
            let cidr = self.cluster_cidr.to_string();
            [direction, &cidr, "-m", "comment", "--comment", &self.name, "-j", "ACCEPT"].map(str::to_owned).to_vec()
        })
    }
}

/// `iptables -w 5 ACTION CHAIN RULE…`.
fn arguments<'a>(action: &'a str, chain: &'a str, rule: &'a [String]) -> Vec<&'a str> {
    ["-w", "5", action, chain].into_iter().chain(rule.iter().map(String::as_str)).collect()
}

fn nat<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    ["-t", "nat"].into_iter().chain(arguments.iter().copied()).collect()
}

/// Lets the kernel forward between interfaces.
async fn forward() -> Result<(), NetworkError> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    // Writing resets other settings of the kernel, so it is done only where it changes something.
    let on = tokio::fs::read_to_string(SWITCH).await.is_ok_and(|text| text.trim() == "1");
    if on {
        return Ok(());
    }
    tokio::fs::write(SWITCH, "1").await.map_err(|error| NetworkError::step("switch on IP forwarding", error))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(SYSTEM_PATHS.map(PathBuf::from));
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

/// Runs a command and returns what it printed.
async fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let step = || format!("{} {}", program.file_name().unwrap_or_default().to_string_lossy(), arguments.join(" "));
    let failed = |error: std::io::Error| NetworkError::step(step(), error);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let running = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(COMMAND, running).await;
    let output = output.map_err(|_| NetworkError::step(step(), format!("took longer than {COMMAND:?}")))?.map_err(failed)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(NetworkError::step(step(), if words.is_empty() { output.status.to_string() } else { words }));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_name_the_node_and_its_ranges() {
        let firewall = Firewall::new("node-a", "10.42.3.7/24".parse().unwrap(), "10.42.0.0/16".parse().unwrap());
        let other = Firewall::new("node-b", "10.42.3.7/24".parse().unwrap(), "10.42.0.0/16".parse().unwrap());
        assert_ne!(firewall.name, other.name);
        let rules = firewall.chain_rules(&["10.0.0.2".parse().unwrap()]);
        let name = &firewall.name;
        assert_eq!(
            rules,
            format!(
                "*nat\n:{name} - [0:0]\n-A {name} -d 10.0.0.2 -j RETURN\n-A {name} -s 10.42.3.0/24 ! -d 10.42.0.0/16 -j MASQUERADE\nCOMMIT\n"
            )
        );
        assert!(firewall.set_nodes(vec![]) && !firewall.set_nodes(vec![]));
        let rule = firewall.accepts()[1].join(" ");
        assert_eq!(rule, format!("-d 10.42.0.0/16 -m comment --comment {} -j ACCEPT", firewall.name));
    }
}
