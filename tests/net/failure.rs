//! Nodes that go away and come back: a short absence changes nothing, a long one moves the pods, and nothing ever runs twice for long.

use std::time::{Duration, Instant};

use crate::cluster::{MINUTE, NetCluster};
use crate::support::wait_for;

/// A deployment whose pods leave a node that is away after five seconds.
fn deployment(replicas: u32) -> String {
    let toleration = |key: &str| format!("{{key: {key}, operator: Exists, effect: NoExecute, tolerationSeconds: 5}}");
    let (not_ready, unreachable) = (toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable"));
    format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web}}, spec: {{replicas: {replicas}, selector: {{matchLabels: \
         {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}}, spec: {{tolerations: [{not_ready}, {unreachable}], \
         terminationGracePeriodSeconds: 1, containers: [{{name: main, image: orch-test, imagePullPolicy: Never, readinessProbe: \
         {{httpGet: {{path: /health, port: 8080}}, periodSeconds: 1}}}}]}}}}}}}}"
    )
}

/// Containers of the deployment that run on a host.
fn running(cluster: &NetCluster, host: usize) -> Vec<String> {
    let filter = "label=io.kubernetes.container.name=main";
    let ids = cluster.host(host).docker(["ps", "-q", "--no-trunc", "--filter", filter]);
    ids.lines().map(str::to_owned).collect()
}

fn endpoints(cluster: &NetCluster) -> Result<Vec<String>, String> {
    let path = "jsonpath={.subsets[*].addresses[*].nodeName}";
    let nodes = cluster.kubectl().try_run(["get", "endpoints", "web", "-o", path])?;
    Ok(nodes.split_whitespace().map(str::to_owned).collect())
}

#[test]
fn a_node_that_is_away() {
    let cluster = NetCluster::start(&[0, 0, 0]);
    let kubectl = cluster.kubectl();
    kubectl.manifest(&["apply"], &deployment(4)).unwrap();
    kubectl.run(["expose", "deployment", "web", "--port=8080"]);
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=90s"]);
    let on_third = running(&cluster, 3);
    assert!(!on_third.is_empty(), "the scheduler spreads pods");
    let everywhere = [1, 2, 3].map(|host| running(&cluster, host));
    let uids = || {
        let mut uids: Vec<String> =
            kubectl.jsonpath(&["pods", "-l", "app=web"], "{.items[*].metadata.uid}").split(' ').map(str::to_owned).collect();
        uids.sort();
        uids
    };
    let pods = uids();

    // Ten seconds without a cable: nothing that runs is touched.
    cluster.cut(cluster.host(3));
    std::thread::park_timeout(Duration::from_secs(10));
    cluster.join(cluster.host(3));
    wait_for("the node to be heard of again", MINUTE, || kubectl.try_run(["get", "--raw", "/api/v1/nodes/h3/proxy/healthz"]));
    assert_eq!(uids(), pods);
    assert_eq!([1, 2, 3].map(|host| running(&cluster, host)), everywhere);
    wait_for("all endpoints to be ready", MINUTE, || {
        let now = endpoints(&cluster)?;
        if now.len() == 4 { Ok(()) } else { Err(format!("{now:?}")) }
    });

    // Longer: the node is given up, its pods are out of the endpoints at once and run elsewhere after the time they tolerate.
    let cut_at = Instant::now();
    cluster.cut(cluster.host(3));
    cluster.wait_node("h3", "Unknown");
    println!("not ready {:?} after the cut", cut_at.elapsed());
    assert!(cut_at.elapsed() > Duration::from_secs(25), "a heartbeat is due every 10 s, and the grace is 40 s");
    wait_for("the lost node's pods to leave the endpoints", Duration::from_secs(3), || {
        let now = endpoints(&cluster)?;
        if now.iter().any(|node| node == "h3") { Err(format!("{now:?}")) } else { Ok(()) }
    });
    let taints = wait_for("the taints", MINUTE, || {
        let taints = kubectl.try_run(["get", "node", "h3", "-o", "jsonpath={.spec.taints[*].key} {.spec.taints[*].effect}"])?;
        if taints.contains("node.kubernetes.io/unreachable") && taints.contains("NoExecute") { Ok(taints) } else { Err(taints) }
    });
    println!("taints: {taints}");
    let replaced_at = Instant::now();
    wait_for("four ready pods elsewhere", MINUTE, || {
        let now = endpoints(&cluster)?;
        if now.len() == 4 && !now.iter().any(|node| node == "h3") { Ok(()) } else { Err(format!("{now:?}")) }
    });
    println!("replaced {:?} after it was given up", replaced_at.elapsed());
    assert_eq!(running(&cluster, 3), on_third, "on the node itself nobody stopped them");

    // It comes back: what was replaced is stopped there, and no more than four run.
    cluster.join(cluster.host(3));
    cluster.wait_node("h3", "True");
    wait_for("the replaced pods to be stopped", MINUTE, || {
        let now = running(&cluster, 3);
        if now.iter().any(|container| on_third.contains(container)) { Err(format!("{now:?}")) } else { Ok(()) }
    });
    wait_for("exactly four pods to be left, in the API and in the engines", MINUTE, || {
        let (api, engines) = (uids().len(), (1..=3).map(|host| running(&cluster, host).len()).sum::<usize>());
        if (api, engines) == (4, 4) {
            Ok(())
        } else {
            Err(format!("{api} in the API, {engines} run\n{}", kubectl.run(["get", "pods", "-o", "wide"])))
        }
    });
    let taints = wait_for("the taints to go", MINUTE, || {
        let taints = kubectl.try_run(["get", "node", "h3", "-o", "jsonpath={.spec.taints[*].key}"])?;
        if taints.is_empty() { Ok(taints) } else { Err(taints) }
    });
    assert_eq!(taints, "");
    // It takes pods again.
    cluster.pod("again", 3, "image: orch-test", "");
}

#[test]
fn a_server_that_hangs_is_no_reason_to_stop_pods() {
    let cluster = NetCluster::start(&[0, 0]);
    let kubectl = cluster.kubectl();
    kubectl.manifest(&["apply"], &deployment(2)).unwrap();
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=90s"]);
    let before = [1, 2].map(|host| running(&cluster, host));
    let pods = kubectl.jsonpath(&["pods"], "{.items[*].metadata.uid}");
    // The server process stands still for longer than the grace: when it goes on, no heartbeat could have come.
    cluster.orch(1).pause();
    std::thread::park_timeout(Duration::from_secs(50));
    cluster.orch(1).resume();
    std::thread::park_timeout(Duration::from_secs(10));
    cluster.wait_ready();
    assert_eq!(kubectl.jsonpath(&["pods"], "{.items[*].metadata.uid}"), pods, "the same pods");
    assert_eq!([1, 2].map(|host| running(&cluster, host)), before, "the same containers");
}
