//! The README's first command: a cluster of one, the example application on it, and its end; and every other example applies.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Cluster, docker, free_port, run, text, uninstall};

#[test]
fn the_quick_start_runs_the_example_and_stops() {
    let folder = tempfile::Builder::new().prefix("orch-quickstart-").tempdir().unwrap();
    let installed = Installed(folder.path().join("data"));
    let (port, kubelet) = (free_port().to_string(), free_port().to_string());
    let quickstart = |arguments: &[&str]| -> Output {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/quickstart"));
        command.args(arguments).env("ORCH_BIN", env!("CARGO_BIN_EXE_orch")).env("HOME", folder.path());
        command.env("ORCH_DATA_DIR", folder.path().join("data")).env("ORCH_WRITE_KUBECONFIG", folder.path().join("kubeconfig"));
        command.env("ORCH_HTTPS_LISTEN_PORT", &port).env("ORCH_KUBELET_PORT", &kubelet).env("ORCH_NODE_NAME", "quickstart");
        command.env("ORCH_CONFIG", "/dev/null").env("ORCH_CLUSTER_CIDR", "10.90.0.0/16").env("ORCH_SERVICE_CIDR", "10.91.0.0/16");
        command.output().unwrap()
    };
    let said = |output: &Output| format!("{}{}", text(&output.stdout), text(&output.stderr));
    let up = quickstart(&[]);
    assert!(up.status.success() && said(&up).contains("answers: Welcome to nginx!"), "{}", said(&up));
    let owner = std::fs::read_to_string(folder.path().join("data/agent/owner")).unwrap();
    let again = quickstart(&[]);
    assert!(again.status.success() && said(&again).contains("is running already"), "{}", said(&again));
    let stopped = quickstart(&["stop"]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    assert_eq!(docker(["ps", "-aq", "--filter", &format!("label=io.orch.owner={owner}")]), "", "{}", said(&stopped));
    drop(installed);
    for (program, arguments) in [("ip", &["route"][..]), ("ip", &["address", "show", "lo"])] {
        let left = run(program, arguments.iter());
        assert!(!left.contains(" 10.90.0.") && !left.contains(" 10.91.0.10/"), "{program} {arguments:?}: {left}");
    }
}

/// A data directory whose node is taken off the machine at the end: `quickstart stop` keeps what a next start finds again.
struct Installed(PathBuf);

impl Drop for Installed {
    fn drop(&mut self) {
        uninstall(&self.0);
    }
}

#[test]
fn every_example_applies() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    kubectl.run(["apply", "-f", examples.to_str().unwrap()]);
    kubectl.run(["wait", "--for=condition=Ready", "pods", "-l", "!job-name", "--timeout=60s"]);
    kubectl.run(["wait", "--for=condition=complete", "job/count", "--timeout=60s"]);
    kubectl.run(["rollout", "status", "sts/store", "--timeout=60s"]);
    kubectl.run(["exec", "store-0", "--", "redis-cli", "-h", "store-1.store", "set", "kept", "yes"]);
    kubectl.run(["delete", "pod", "store-1"]);
    kubectl.run(["rollout", "status", "sts/store", "--timeout=60s"]);
    assert_eq!(kubectl.run(["exec", "store-1", "--", "redis-cli", "get", "kept"]).trim(), "yes");
    let logs = kubectl.run(["logs", "reads-config"]);
    assert!(logs.contains("maxmemory=2mb") && logs.contains("user=root"), "{logs}");
}
