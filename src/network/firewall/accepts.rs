//! Accepts in the chains of iptables, set by netlink: for a host where its rules are in nf_tables and its program is not installed.

use ipnet::Ipv4Net;

use super::FORWARD_CHAINS;
use crate::network::nft::expr::{Expr, match_daddr, match_saddr};
use crate::network::nft::{Batch, Family, FoundRule, Nft, NftError, Rule, Table, Verdict};

/// Where iptables and Docker keep their filter rules.
fn filter() -> Table {
    Table::new(Family::Ipv4, "filter")
}

fn ours<'a>(rules: &'a [FoundRule], name: &str) -> impl Iterator<Item = &'a FoundRule> {
    rules.iter().filter(move |rule| rule.comment.as_deref() == Some(name))
}

/// Lets traffic from and to a range through, at the head of the first of the chains that is there; `name` tells the rules from
/// those of others. Without such a chain nothing stands in the way.
///
/// # Errors
/// What the kernel refused.
pub(super) async fn ensure(nft: &Nft, name: &str, range: Ipv4Net) -> Result<(), NftError> {
    let filter = filter();
    let chains = nft.chains(&filter).await?;
    let Some(chain) = FORWARD_CHAINS.into_iter().find(|chain| chains.iter().any(|found| found == chain)) else { return Ok(()) };
    let rules = nft.rules(&filter, chain).await?;
    let wanted = [match_saddr(range, true), match_daddr(range, true)];
    if ours(&rules, name).count() == wanted.len() {
        return Ok(());
    }
    let mut batch = Batch::new();
    ours(&rules, name).for_each(|rule| batch.delete_rule(&filter, chain, rule.handle));
    for range in wanted {
        let accept = Rule::of([range, vec![Expr::Counter, Expr::Verdict(Verdict::Accept)]]).comment(name);
        batch.insert_rule(&filter, chain, &accept);
    }
    nft.commit(batch).await
}

/// Takes the rules of that name away.
///
/// # Errors
/// What the kernel refused.
pub(super) async fn remove(nft: &Nft, name: &str) -> Result<(), NftError> {
    let (filter, mut batch) = (filter(), Batch::new());
    for chain in FORWARD_CHAINS {
        let rules = nft.rules(&filter, chain).await?;
        ours(&rules, name).for_each(|rule| batch.delete_rule(&filter, chain, rule.handle));
    }
    nft.commit(batch).await
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

    /// In a network namespace of the test's own, with the chain that Docker makes, looked at with the program iptables.
    #[test]
    fn iptables_shows_the_rules_as_its_own() {
        let test = async {
            let nft = Nft::open().unwrap();
            let range = "10.42.0.0/16".parse().unwrap();
            ensure(&nft, "orch-x", range).await.unwrap();
            command("iptables -N DOCKER-USER");
            command("iptables -A DOCKER-USER -j RETURN");
            let check = || {
                let rules = command("iptables -S DOCKER-USER");
                for direction in ["-s", "-d"] {
                    let rule = format!("-A DOCKER-USER {direction} 10.42.0.0/16 -m comment --comment orch-x -j ACCEPT");
                    assert_eq!(rules.matches(&rule).count(), 1, "{rules}");
                }
                assert!(rules.ends_with("-A DOCKER-USER -j RETURN\n"), "before what Docker has there: {rules}");
            };
            for _ in 0..2 {
                ensure(&nft, "orch-x", range).await.unwrap();
                check();
            }
            command("iptables -D DOCKER-USER 1");
            ensure(&nft, "orch-x", range).await.unwrap();
            check();
            remove(&nft, "orch-x").await.unwrap();
            assert_eq!(command("iptables -S DOCKER-USER"), "-N DOCKER-USER\n-A DOCKER-USER -j RETURN\n");
        };
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
        });
        thread.join().unwrap();
    }
}
