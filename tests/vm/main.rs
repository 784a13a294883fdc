//! What this machine's kernel may lack, on one that has it: cgroup v2, NFS, iSCSI. The test boots a machine of its own
//! (`tests/vm/boot`), and this same program runs the cases in it, with real containers and real servers.
//!
//! `ORCH_VM_CASES=nfs,iscsi cargo test --test vm -- --nocapture` runs those whose name contains one of the words.

#[path = "../support/mod.rs"]
mod support;

mod cgroups;
mod clock;
mod iscsi;
mod nfs;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use world::{Case, World};

/// Is set in the machine.
const INSIDE: &str = "ORCH_VM_INSIDE";
/// Words of the cases that are to run; all of them if there is none.
const WANTED: &str = "ORCH_VM_CASES";
/// How much slower than a real machine an emulated one may be.
const SLOWNESS: u32 = 6;
/// How long the machine may run.
const SECONDS: u32 = 1_500;

#[test]
fn in_a_machine_of_its_own() {
    if std::env::var_os(INSIDE).is_some() {
        return run_cases();
    }
    let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/boot");
    let wanted = std::env::var(WANTED).unwrap_or_default();
    let mut command = Command::new(boot);
    command.env("ORCH_VM_SECONDS", SECONDS.to_string()).env("ORCH_VM_IMAGES", "busybox:latest");
    command.args(["env", &format!("{INSIDE}=1"), &format!("{WANTED}={wanted}")]);
    command.arg(format!("{}={SLOWNESS}", support::SLOWNESS));
    command.arg(std::env::current_exe().unwrap()).args(["in_a_machine_of_its_own", "--exact", "--nocapture"]);
    let status = command.stdin(Stdio::null()).status().unwrap();
    assert!(status.success(), "the cases in the machine, or the machine: {status}; what it said is above");
}

/// All cases, one after the other, in one cluster: a case that fails does not keep the others from being run.
fn run_cases() {
    let wanted = std::env::var(WANTED).unwrap_or_default();
    let all: Vec<(&str, Case)> = [nfs::CASES, iscsi::CASES, cgroups::CASES, clock::CASES, nfs::LAST].concat();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.split(',').any(|word| name.contains(word));
    let mut world = World::start();
    let mut failed = Vec::new();
    for (name, case) in all.into_iter().filter(|(name, _)| is_wanted(name)) {
        let began = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| case(&mut world)));
        let end = if result.is_ok() { "ok" } else { "FAILED" };
        println!("case {name} ... {end} in {:.1} s", began.elapsed().as_secs_f64());
        if result.is_err() {
            println!("--- the end of the server's log ---\n{}", world.cluster.log_tail());
            failed.push(name);
        }
    }
    drop(world);
    nothing_is_left();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// What the cluster made is gone with it.
fn nothing_is_left() {
    assert!(!Path::new("/sys/fs/cgroup/kubepods").exists(), "the pods' cgroup is gone");
    let left: Vec<String> = ["agent/pods", "agent/plugins"].into_iter().flat_map(world::World::mounts).collect();
    assert!(left.is_empty(), "{left:?}");
}
