//! The rules that pods need: pod traffic to the outside leaves with the node's address, and what Docker's FORWARD chain would
//! drop is let through.
//!
//! Masquerading lives in a table of the node's own. The accepts must stand in `DOCKER-USER`: an accept in a table of one's own does
//! not undo a drop in Docker's. Where iptables keeps its rules in nf_tables they are set by netlink; where it does not (legacy
//! tables), by the iptables program. Names carry a hash of the node's name, so several nodes share a machine. Everything here can
//! be repeated.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt;
use ipnet::Ipv4Net;
use tokio::process::Command;

use super::NetworkError;
use super::attach::hex;
use super::nft::expr::{Expr, PortChoice, match_daddr, match_saddr};
use super::nft::{Base, Batch, ChainKind, Family, Hook, Monitor, Nft, NftError, Rule, Table, Verdict, priority};

/// A rule command that takes longer is stuck.
const COMMAND: Duration = Duration::from_secs(20);
/// Others change several things one after the other: they are let finish.
const SETTLE: Duration = Duration::from_millis(100);
/// Where the commands are, beside PATH.
const SYSTEM_PATHS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];
/// How Docker lets others come before its own rules; without it (or without Docker's rules) the chain itself.
const FORWARD_CHAINS: [&str; 2] = ["DOCKER-USER", "FORWARD"];
const POSTROUTING: &str = "postrouting";

/// The rules of one node.
pub(super) struct Firewall {
    /// `orch-` and a hash of the node's name.
    name: String,
    pod_cidr: Ipv4Net,
    cluster_cidr: Ipv4Net,
    nft: Nft,
    /// The node's own.
    table: Table,
    /// Where iptables and Docker keep their filter rules.
    filter: Table,
}

/// Tells when somebody else changed the tables that the rules are in.
pub(super) struct Watch {
    own: Monitor,
    filter: Monitor,
}

impl Watch {
    /// Waits for a change, and until it has settled.
    ///
    /// # Errors
    /// When the kernel tells nothing any more.
    pub(super) async fn changed(&mut self) -> Result<(), NftError> {
        tokio::select! {
            changed = self.own.changed() => changed?,
            changed = self.filter.changed() => changed?,
        };
        tokio::time::sleep(SETTLE).await;
        while let Some(changed) = self.own.changed().now_or_never() {
            changed?;
        }
        while let Some(changed) = self.filter.changed().now_or_never() {
            changed?;
        }
        Ok(())
    }
}

impl Firewall {
    /// Opens the way to the kernel.
    ///
    /// # Errors
    /// When there is no socket.
    pub(super) fn open(node: &str, pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net) -> Result<Self, NetworkError> {
        let name = format!("orch-{}", &hex(node)[..8]);
        let nft = Nft::open().map_err(|error| NetworkError::step("speak to nf_tables", error))?;
        let (table, filter) = (Table::new(Family::Ipv4, &name), Table::new(Family::Ipv4, "filter"));
        Ok(Self { name, pod_cidr: pod_cidr.trunc(), cluster_cidr: cluster_cidr.trunc(), nft, table, filter })
    }

    /// Tells when somebody else changed something from now on.
    ///
    /// # Errors
    /// When there is no socket.
    pub(super) fn watch(&self) -> Result<Watch, NftError> {
        Ok(Watch { own: self.nft.monitor(&self.table)?, filter: self.nft.monitor(&self.filter)? })
    }

    /// Sets what is missing: forwarding, masquerading, accepts.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) async fn ensure(&self) -> Result<(), NetworkError> {
        forward().await?;
        self.ensure_masquerade().await.map_err(|error| NetworkError::step("masquerade pod traffic", error))?;
        self.ensure_accepts().await
    }

    /// Takes all rules of the node away.
    ///
    /// # Errors
    /// As [`ensure`](Self::ensure).
    pub(super) async fn remove(&self) -> Result<(), NetworkError> {
        self.remove_tables().await.map_err(|error| NetworkError::step("remove the rules", error))?;
        let Some(iptables) = find("iptables") else { return Ok(()) };
        for chain in FORWARD_CHAINS {
            for rule in self.accepts() {
                // That the rule is not there is what was wanted.
                while run(&iptables, &arguments("-D", chain, &rule)).await.is_ok() {}
            }
        }
        Ok(())
    }

    /// The node's tables, and its rules in that of iptables.
    async fn remove_tables(&self) -> Result<(), NftError> {
        let mut batch = Batch::new();
        let own = self.nft.tables(Family::Ipv4).await?.into_iter();
        // This one, and those of the parts of the network, which are named after it.
        for name in own.filter(|name| name.strip_prefix(&self.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
        {
            batch.delete_table(&Table::new(Family::Ipv4, &name));
        }
        for chain in FORWARD_CHAINS {
            for rule in self.nft.rules(&self.filter, chain).await? {
                if rule.comment.as_ref() == Some(&self.name) {
                    batch.delete_rule(&self.filter, chain, rule.handle);
                }
            }
        }
        self.nft.commit(batch).await
    }

    async fn ensure_masquerade(&self) -> Result<(), NftError> {
        let rule = self.masquerade();
        let found = self.nft.rules(&self.table, POSTROUTING).await?;
        if matches!(&found[..], [only] if only.comment == rule.comment) {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.remove_table(&self.table);
        batch.add_table(&self.table);
        batch.add_base_chain(&self.table, POSTROUTING, Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT));
        batch.add_rule(&self.table, POSTROUTING, &rule);
        self.nft.commit(batch).await
    }

    /// The comment tells the ranges, so that others than these are noticed.
    fn masquerade(&self) -> Rule {
        let Self { pod_cidr, cluster_cidr, .. } = self;
        let masquerade = vec![Expr::Masquerade { choice: PortChoice::Keep }];
        Rule::of([match_saddr(*pod_cidr, true), match_daddr(*cluster_cidr, false), masquerade])
            .comment(format!("pods of {pod_cidr} to outside of {cluster_cidr}"))
    }

    async fn ensure_accepts(&self) -> Result<(), NetworkError> {
        let failed = |error: NftError| NetworkError::step("let pod traffic through", error);
        let chains = self.nft.chains(&self.filter).await.map_err(failed)?;
        match FORWARD_CHAINS.into_iter().find(|chain| chains.iter().any(|found| found == chain)) {
            Some(chain) => self.ensure_accepts_in(chain).await.map_err(failed),
            None => self.ensure_legacy_accepts().await,
        }
    }

    /// By netlink, in the words of iptables, so that its listing shows them.
    async fn ensure_accepts_in(&self, chain: &str) -> Result<(), NftError> {
        let found = self.nft.rules(&self.filter, chain).await?;
        let count = found.iter().filter(|rule| rule.comment.as_ref() == Some(&self.name)).count();
        if count == self.accepts().len() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for rule in found.iter().filter(|rule| rule.comment.as_ref() == Some(&self.name)) {
            batch.delete_rule(&self.filter, chain, rule.handle);
        }
        for range in [match_saddr(self.cluster_cidr, true), match_daddr(self.cluster_cidr, true)] {
            let accept = Rule::of([range, vec![Expr::Counter, Expr::Verdict(Verdict::Accept)]]).comment(&*self.name);
            batch.insert_rule(&self.filter, chain, &accept);
        }
        self.nft.commit(batch).await
    }

    /// Where iptables does not keep its rules in nf_tables, only its program knows them.
    async fn ensure_legacy_accepts(&self) -> Result<(), NetworkError> {
        let Some(iptables) = find("iptables") else { return Ok(()) };
        let mut failure = None;
        for chain in FORWARD_CHAINS {
            // Docker makes its chain; where there is none, nothing but the policy stands between.
            let rules = match run(&iptables, &["-w", "5", "-S", chain]).await {
                Ok(rules) => rules,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            for rule in self.accepts() {
                if !rules.contains(&rule.join(" ")) {
                    run(&iptables, &arguments("-I", chain, &rule)).await?;
                }
            }
            return Ok(());
        }
        failure.map_or(Ok(()), Err)
    }

    /// Two rules, as `iptables -S` prints them: from pods, to pods; those of other nodes too, to which this one forwards.
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
async fn run(program: &Path, arguments: &[&str]) -> Result<String, NetworkError> {
    let step = || format!("{} {}", program.file_name().unwrap_or_default().to_string_lossy(), arguments.join(" "));
    let failed = |error: std::io::Error| NetworkError::step(step(), error);
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND, command.output()).await;
    let output = output.map_err(|_| NetworkError::step(step(), format!("took longer than {COMMAND:?}")))?.map_err(failed)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(NetworkError::step(step(), if words.is_empty() { output.status.to_string() } else { words }));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn command(line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let output = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn check(firewall: &Firewall) {
        let rules = command(&format!("nft list table ip {}", firewall.name));
        assert!(rules.contains("ip saddr 10.42.3.0/24 ip daddr != 10.42.0.0/16 masquerade"), "{rules}");
        let accepts = command("iptables -S DOCKER-USER");
        for direction in ["-s", "-d"] {
            let rule = format!("-A DOCKER-USER {direction} 10.42.0.0/16 -m comment --comment {} -j ACCEPT", firewall.name);
            assert_eq!(accepts.matches(&rule).count(), 1, "{accepts}");
        }
        assert!(accepts.ends_with("-A DOCKER-USER -j RETURN\n"), "before what Docker has there: {accepts}");
    }

    /// In a network namespace of the test's own, with the chain that Docker makes, looked at with the programs nft and iptables.
    #[test]
    fn rules_are_set_repaired_and_taken_away() {
        let test = async {
            command("iptables -N DOCKER-USER");
            command("iptables -A DOCKER-USER -j RETURN");
            let (pods, cluster) = ("10.42.3.7/24".parse().unwrap(), "10.42.0.0/16".parse().unwrap());
            let firewall = Firewall::open("node-a", pods, cluster).unwrap();
            assert_ne!(firewall.name, Firewall::open("node-b", pods, cluster).unwrap().name);
            let mut watch = firewall.watch().unwrap();
            for _ in 0..2 {
                firewall.ensure().await.unwrap();
                check(&firewall);
            }
            assert!(watch.changed().now_or_never().is_none(), "its own changes are not told");
            let deletion = format!("nft delete table ip {}", firewall.name);
            for change in ["iptables -D DOCKER-USER 1", "iptables -D DOCKER-USER 2", &deletion] {
                command(change);
                tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.expect(change).unwrap();
                firewall.ensure().await.unwrap();
                check(&firewall);
            }
            firewall.remove().await.unwrap();
            assert_eq!(command("iptables -S DOCKER-USER"), "-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n");
            assert!(!command("nft list tables").contains("orch"));
        };
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
        });
        thread.join().unwrap();
    }
}
