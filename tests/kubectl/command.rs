//! What `orch` says on the command line when something is in its way: the cause and the cure, and a code that tells wrong usage
//! (2) from a failure (1).

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use crate::support::{Cluster, text};

fn orch(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
    command.args(arguments).env("ORCH_CONFIG", "/dev/null").stdin(Stdio::null());
    command
}

fn fails(command: &mut Command, code: i32, expected: &[&str]) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = format!("{}{}", text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(code), "{said}");
    for part in expected {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn wrong_usage_says_what_is_right() {
    fails(&mut orch(&["server", "--data-dri=/x"]), 2, &["unexpected argument '--data-dri'", "--data-dir"]);
    fails(&mut orch(&["sever"]), 2, &["unrecognized subcommand 'sever'", "server"]);
    fails(&mut orch(&["server", "--cluster-cidr=10.42.0.0"]), 2, &["--cluster-cidr"]);
    fails(&mut orch(&["agent"]), 2, &["--join"]);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.yaml");
    std::fs::write(&config, "data-dri: /x\n").unwrap();
    fails(orch(&["server"]).env("ORCH_CONFIG", &config), 2, &["config.yaml", "unknown key \"data-dri\"", "orch server --help"]);
}

#[test]
fn what_is_in_the_way_is_named() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let folder = tempfile::tempdir().unwrap();
    let data = format!("--data-dir={}", folder.path().join("data").display());
    let kubeconfig = format!("--write-kubeconfig={}", folder.path().join("kubeconfig").display());

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let on_port = ["server", "--disable-agent", &data, &kubeconfig, "--bind-address=127.0.0.1", "--https-listen-port", &port];
    fails(&mut orch(&on_port), 1, &[&format!("cannot listen on 127.0.0.1:{port}: the port is taken"), "--https-listen-port"]);

    let same = cluster.flags();
    let data_of_other = same.iter().find(|flag| flag.starts_with("--data-dir=")).unwrap();
    let second = ["server", "--disable-agent", data_of_other, &kubeconfig, "--https-listen-port=0"];
    fails(&mut orch(&second), 1, &["is in use by process", &cluster.pid().to_string()]);

    let mut as_nobody = orch(&["server", &data, &kubeconfig]);
    as_nobody.uid(65_534).gid(65_534);
    fails(&mut as_nobody, 1, &["a node needs root", "--disable-agent"]);
}
