//! `iscsiadm`: discovery, login and logout of the host's initiator, step by step as upstream's `iscsi_util.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::disk::Disk;
use crate::agent::volume::tool::{self, Ran};

/// The initiator itself waits for a silent portal for 15 s, and tries a login several times.
const RUN: Duration = Duration::from_secs(120);
const DISCOVERY_KEYS: [&str; 4] = [
    "discovery.sendtargets.auth.username",
    "discovery.sendtargets.auth.password",
    "discovery.sendtargets.auth.username_in",
    "discovery.sendtargets.auth.password_in",
];
const SESSION_KEYS: [&str; 4] = [
    "node.session.auth.username",
    "node.session.auth.password",
    "node.session.auth.username_in",
    "node.session.auth.password_in",
];
/// `ISCSI_ERR_SESS_EXISTS`, `ISCSI_ERR_SESS_NOT_FOUND`, `ISCSI_ERR_NO_OBJS_FOUND`.
const EXISTS: i32 = 15;
const NO_SESSION: i32 = 2;
const NO_OBJECTS: i32 = 21;

/// What a Secret holds for CHAP; never shown.
pub type Chap = BTreeMap<String, String>;

async fn iscsiadm(arguments: &[&str]) -> Result<Ran, String> {
    let ran = tool::end_of("iscsiadm", arguments, RUN).await;
    ran.map_err(|why| if why.ends_with("is not installed on this host") { format!("{why}: install open-iscsi") } else { why })
}

/// It must succeed, or fail in a way that does not matter.
async fn must(arguments: &[&str], fine: &[i32], what: impl FnOnce(&Ran) -> String) -> Result<Ran, String> {
    let ran = iscsiadm(arguments).await?;
    let is_fine = ran.status.success() || ran.status.code().is_some_and(|code| fine.contains(&code));
    if is_fine { Ok(ran) } else { Err(what(&ran)) }
}

/// Cleaning up after a failure: the failure is what is told.
async fn undo(arguments: &[&str]) {
    match iscsiadm(arguments).await {
        Ok(ran) if ran.status.success() => {}
        Ok(ran) => tracing::debug!(words = ran.words(), "iscsiadm"),
        Err(why) => tracing::debug!(why, "iscsiadm"),
    }
}

/// Makes sure that the interface record is there: the host's, or a copy of it under the volume's initiator name.
///
/// # Errors
/// In upstream's words.
pub async fn ensure_interface(disk: &Disk) -> Result<(), String> {
    let original = disk.cloned_from.as_deref().unwrap_or(&disk.interface);
    let show = ["-m", "iface", "-I", original, "-o", "show"];
    let shown = must(&show, &[], |ran| format!("iscsi: could not read iface {original} error: {}", ran.words())).await?;
    let (Some(_), Some(initiator)) = (&disk.cloned_from, &disk.initiator) else { return Ok(()) };
    let own = disk.interface.as_str();
    let new = ["-m", "iface", "-I", own, "-o", "new"];
    must(&new, &[EXISTS], |ran| format!("iscsi: failed to create new iface: {} ({})", ran.words(), ran.exit())).await?;
    let mut parameters = parameters(&shown.stdout);
    parameters.insert("iface.initiatorname".to_owned(), initiator.clone());
    for (key, value) in &parameters {
        let update = ["-m", "iface", "-I", own, "-o", "update", "-n", key, "-v", value];
        let updated = must(&update, &[EXISTS], |ran| {
            format!("iscsi: failed to update iface records: {} ({}). iface({original}) will be used", ran.words(), ran.exit())
        });
        if let Err(why) = updated.await {
            remove_interface(disk).await;
            return Err(why);
        }
    }
    Ok(())
}

/// Removes the copy of an interface record, if the disk has one.
pub async fn remove_interface(disk: &Disk) {
    if disk.cloned_from.is_some() {
        undo(&["-m", "iface", "-I", &disk.interface, "-o", "delete"]).await;
    }
}

/// The settings in a record, without those that are empty or the record's name.
fn parameters(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    let pairs = lines.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
    pairs.filter(|(key, value)| value != "<empty>" && !value.is_empty() && key != "iface.iscsi_ifacename").collect()
}

/// Logs in to a target through a portal.
///
/// # Errors
/// In upstream's words, with what `iscsiadm` said.
pub async fn log_in(disk: &Disk, portal: &str, chap: &Chap) -> Result<(), String> {
    discover(disk, portal, chap).await?;
    let node = ["-m", "node", "-p", portal, "-T", &disk.iqn, "-I", &disk.interface];
    let of_node = |more: &[&'static str]| [&node[..], more].concat();
    let what = |ran: &Ran| format!("iscsi: failed to create node record Error: {} ({})", ran.words(), ran.exit());
    must(&of_node(&["-o", "new"]), &[EXISTS], what).await?;
    // Only the disks that are asked for are looked for.
    undo(&of_node(&["-o", "update", "-n", "node.session.scan", "-v", "manual"])).await;
    if disk.chap_session {
        let updated = set_chap(&node, "node.session.auth.authmethod", &SESSION_KEYS, chap).await;
        updated.map_err(|why| format!("iscsi: failed to update iscsi node to portal {portal} error: {why}"))?;
    }
    let what = |ran: &Ran| format!("iscsi: failed to attach disk: Error: {} ({})", ran.words(), ran.exit());
    if let Err(why) = must(&of_node(&["--login"]), &[EXISTS], what).await {
        undo(&of_node(&["-o", "delete"])).await;
        return Err(why);
    }
    // A machine that starts must not wait for the target.
    undo(&of_node(&["-o", "update", "-n", "node.startup", "-v", "manual"])).await;
    Ok(())
}

async fn discover(disk: &Disk, portal: &str, chap: &Chap) -> Result<(), String> {
    let database = ["-m", "discoverydb", "-t", "sendtargets", "-p", portal, "-I", &disk.interface];
    let of_database = |more: &[&'static str]| [&database[..], more].concat();
    iscsiadm(&of_database(&["-o", "new"])).await?;
    if disk.chap_discovery {
        let updated = set_chap(&database, "discovery.sendtargets.auth.authmethod", &DISCOVERY_KEYS, chap).await;
        updated.map_err(|why| format!("iscsi: failed to update discoverydb to portal {portal} error: {why}"))?;
    }
    let what = |ran: &Ran| format!("iscsi: failed to sendtargets to portal {portal} output: {}, err {}", ran.words(), ran.exit());
    // Of the other targets of the portal nothing is noted: a host may log in to all that it knows when it starts.
    if let Err(why) = must(&of_database(&["--discover", "-o", "nonpersistent"]), &[], what).await {
        undo(&of_database(&["-o", "delete"])).await;
        return Err(why);
    }
    Ok(())
}

async fn set_chap(record: &[&str], method: &str, keys: &[&str], chap: &Chap) -> Result<(), String> {
    let of_secret = keys.iter().filter_map(|key| Some((*key, chap.get(*key).filter(|value| !value.is_empty())?.as_str())));
    for (key, value) in [(method, "CHAP")].into_iter().chain(of_secret) {
        let update = [record, &["-o", "update", "-n", key, "-v", value]].concat();
        // What failed is told without the value.
        must(&update, &[], |ran| format!("{key} was not set: {}", ran.exit())).await?;
    }
    Ok(())
}

/// Logs out of a target through a portal, and forgets it.
///
/// # Errors
/// In upstream's words.
pub async fn log_out(disk: &Disk, portal: &str) -> Result<(), String> {
    let node = ["-m", "node", "-p", portal, "-T", &disk.iqn, "-I", &disk.interface];
    let fine = [NO_SESSION, NO_OBJECTS];
    let what = |ran: &Ran| format!("iscsi: failed to detach disk Error: {}", ran.words());
    must(&[&node[..], &["--logout"]].concat(), &fine, what).await?;
    let what = |ran: &Ran| format!("iscsi: failed to delete node record Error: {}", ran.words());
    must(&[&node[..], &["-o", "delete"]].concat(), &fine, what).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let text = "# BEGIN RECORD 2.1.8\niface.iscsi_ifacename = default\niface.net_ifacename = <empty>\n\
            iface.transport_name = tcp\niface.mtu = 0\n# END RECORD\n";
        let expected = [("iface.mtu", "0"), ("iface.transport_name", "tcp")];
        assert_eq!(parameters(text), expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    }
}
