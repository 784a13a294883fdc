//! What nodes and pods use: `kubectl top` with no add-on, and the endpoints of the node for those who may ask.

use std::process::Command;
use std::time::Duration;

use crate::support::{Cluster, Kubectl, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);
/// One pod that burns a fifth of a core and holds memory, and one that does nothing.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: busy, labels: {app: busy}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: burn
    image: busybox:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "while true; do :; done"]
    resources: {limits: {cpu: 200m, memory: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: idle}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: sleep, image: "busybox:latest", imagePullPolicy: IfNotPresent, command: [sleep, "100000"]}
"#;

/// Cells of a line of `kubectl top`: a name and numbers without their units.
fn line(output: &str, name: &str) -> Result<Vec<f64>, String> {
    let found = output.lines().find(|line| line.split_whitespace().next() == Some(name)).ok_or_else(|| output.to_owned())?;
    let number = |cell: &str| cell.trim_end_matches(|letter: char| !letter.is_ascii_digit()).parse().ok();
    Ok(found.split_whitespace().skip(1).filter_map(number).collect())
}

fn top(kubectl: &Kubectl, node: &str) {
    let cpu = wait_for("the busy pod to be seen busy", MINUTE, || {
        let cells = line(&kubectl.try_run(["top", "pod"])?, "busy")?;
        if (150.0..=250.0).contains(&cells[0]) { Ok(cells[0]) } else { Err(format!("{cells:?}")) }
    });
    let idle = line(&kubectl.run(["top", "pod"]), "idle").unwrap();
    assert!(idle[0] < 10.0 && idle[1] < 20.0, "{idle:?}");
    let by_container = kubectl.run(["top", "pod", "busy", "--containers"]);
    assert!(by_container.contains("burn"), "{by_container}");
    assert!(line(&kubectl.run(["top", "pod", "-l", "app=busy", "-A"]), "default").is_ok());
    let of_node = line(&kubectl.run(["top", "node"]), node).unwrap();
    assert!(of_node[0] >= cpu / 2.0 && of_node[2] > 10.0, "CPU in millicores and memory in Mi: {of_node:?}");
}

/// GET of the node's own server with a bearer token: status and body.
fn ask(cluster: &Cluster, path: &str, token: &str) -> (String, String) {
    let url = format!("https://127.0.0.1:{}{path}", cluster.kubelet_port);
    let bearer = format!("Authorization: Bearer {token}");
    let output =
        Command::new("curl").args(["-sk", "--max-time", "10", "-w", "\n%{http_code}", "-H", &bearer, &url]).output().unwrap();
    let all = text(&output.stdout);
    let (body, status) = all.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn what_nodes_and_pods_use() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
    kubectl.manifest(&["apply"], PODS).unwrap();
    kubectl.run(["wait", "--for=condition=Ready", "pod/busy", "pod/idle", "--timeout=60s"]);
    for version in ["1.20", "1.37"] {
        top(&cluster.kubectl(version), &cluster.node);
    }
    let table = kubectl.run(["get", "pods.metrics.k8s.io"]);
    assert!(table.starts_with("NAME") && table.contains("WINDOW") && table.contains("busy"), "{table}");
    assert!(kubectl.fails(["get", "--raw", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/none"]).contains("not found"));

    kubectl.run(["create", "serviceaccount", "scraper"]);
    let token = kubectl.run(["create", "token", "scraper"]);
    assert_eq!(ask(&cluster, "/healthz", "").0, "200");
    assert_eq!(ask(&cluster, "/metrics/resource", "").0, "401");
    assert_eq!(ask(&cluster, "/metrics/resource", "nonsense").0, "401");
    let (status, why) = ask(&cluster, "/stats/summary", token.trim());
    assert!(status == "403" && why.contains("system:serviceaccount:default:scraper"), "{status} {why}");
    let role = ["create", "clusterrole", "scrape", "--verb=get", "--resource=nodes/metrics"];
    kubectl.run(role);
    kubectl.run(["create", "clusterrolebinding", "scrape", "--clusterrole=scrape", "--serviceaccount=default:scraper"]);
    let (status, resource) = ask(&cluster, "/metrics/resource", token.trim());
    assert!(
        status == "200"
            && resource.contains("container_cpu_usage_seconds_total{container=\"burn\",namespace=\"default\",pod=\"busy\"}"),
        "{resource}"
    );
    let (_, cadvisor) = ask(&cluster, "/metrics/cadvisor", token.trim());
    for family in [
        "container_memory_working_set_bytes{container=\"sleep\"",
        "container_network_receive_bytes_total{container=\"\"",
        "machine_cpu_cores ",
    ] {
        assert!(cadvisor.contains(family), "{family} is not in {cadvisor}");
    }
    let summary = kubectl.run(["get", "--raw", &format!("/api/v1/nodes/{}/proxy/stats/summary", cluster.node)]);
    for word in ["\"nodeName\"", "\"rxBytes\"", "\"imageFs\"", "\"logs\"", "\"process_stats\""] {
        assert!(summary.contains(word), "{word} is not in {summary}");
    }
    kubectl.run(["delete", "pod", "busy", "idle", "--wait"]);
}
