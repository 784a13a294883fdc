//! A foreign client library: the official Python one, with typed calls, watch, logs and exec over WebSocket.

use std::path::Path;
use std::process::Command;

use crate::support::{Cluster, text};

#[test]
fn the_python_client_notices_no_difference() {
    let cluster = Cluster::start();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join("target/tools/python");
    assert!(packages.exists(), "{} is missing: run tests/tools/fetch", packages.display());
    let mut command = Command::new("python3");
    command.arg(root.join("tests/kubectl/client.py")).env("PYTHONPATH", packages).env("KUBECONFIG", cluster.kubeconfig());
    let output = command.output().unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.ends_with("done\n"), "{said}");
}
