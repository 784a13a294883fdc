//! The rules that pods need survive Docker and whoever flushes them, and nothing is left when the network is taken away.

use std::time::Duration;

use orch::network::{NetworkConfig, PodNetwork};
use orch::rt::TaskGroup;

use crate::cluster::{MINUTE, NetCluster};
use crate::hosts::Host;
use crate::support::wait_for;

#[test]
fn rules_come_back_whoever_removed_them() {
    let mut cluster = NetCluster::start(&[0, 0]);
    let one = cluster.shell_pod("one", 1);
    let two = cluster.shell_pod("two", 2);
    let (ip, containers) = ([one.ip, two.ip], [one.container(), two.container()]);
    let outside = |cluster: &NetCluster| cluster.source_seen_by_machine(&cluster.existing("one", 1, ip[0]));
    let all = |cluster: &NetCluster, what: &str| {
        wait_for(&format!("pods to talk after: {what}"), MINUTE, || {
            let host = cluster.host(1);
            host.try_exec(&format!("docker exec {} ping -c1 -W1 {}", containers[0], ip[1]))
        });
        wait_for(&format!("a masquerade after: {what}"), MINUTE, || {
            let seen = outside(cluster);
            if seen == cluster.host(1).ip.to_string() { Ok(()) } else { Err(seen) }
        });
    };
    all(&cluster, "nothing");
    for breakage in [
        "iptables -F",
        "iptables -t nat -F",
        "iptables -F DOCKER-USER",
        "nft flush ruleset",
        "nft list tables | grep -o 'ip orch-[0-9a-f]*$' | while read name; do nft delete table $name; done",
        "echo 0 > /proc/sys/net/ipv4/ip_forward",
    ] {
        cluster.host(1).exec("iptables -P FORWARD DROP");
        cluster.host(1).exec(breakage);
        cluster.host(1).exec("iptables -P FORWARD DROP");
        all(&cluster, breakage);
    }
    // An engine that starts again makes its chains anew; its containers are made anew by the agent.
    drop((one, two));
    cluster.hosts.all[0].stop_engine();
    cluster.hosts.all[0].start_engine();
    let kubectl = cluster.kubectl();
    let (pod, address) = (["get", "pod", "one"], "jsonpath={.status.podIP} {.status.conditions[?(@.type==\"Ready\")].status}");
    let now = wait_for("the pod to be ready again", MINUTE, || {
        let now = kubectl.try_run(pod.into_iter().chain(["-o", address]))?;
        let is_up = cluster.host(1).try_exec("docker ps -q --filter label=io.kubernetes.pod.name=one | grep -q .").is_ok();
        now.strip_suffix(" True").filter(|_| is_up).map(str::to_owned).ok_or(now)
    });
    let one = cluster.existing("one", 1, now.parse().unwrap());
    wait_for("the pod to reach the other", MINUTE, || one.ping(ip[1]));
    wait_for("the pod to be masqueraded", MINUTE, || {
        let seen = cluster.source_seen_by_machine(&one);
        if seen == cluster.host(1).ip.to_string() { Ok(()) } else { Err(seen) }
    });
}

/// Interfaces, routes, rules, neighbours and nftables of a host.
fn kernel(host: &Host) -> String {
    let list = "ip -br link; ip -4 route show table all; ip rule; ip neigh show nud permanent; bridge fdb; nft -s list ruleset";
    // Groups of IPv6 come and go with time.
    host.exec(list).lines().filter(|line| !line.contains("33:33:") && !line.contains("01:00:5e")).collect::<Vec<_>>().join("\n")
}

/// What `orch uninstall` does for the pod network, in the host's network namespace.
fn clean_up(host: &Host, config: NetworkConfig) {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).unwrap();
    let work = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tasks = TaskGroup::new();
            let network = PodNetwork::start(config, &tasks).await.unwrap();
            network.cleanup().await.unwrap();
            tasks.shutdown(Duration::from_secs(5)).await;
        });
    };
    std::thread::spawn(work).join().unwrap();
}

#[test]
fn nothing_is_left_of_nodes_that_were_taken_away() {
    let before = std::cell::RefCell::new(Vec::new());
    let mut cluster = NetCluster::start_with_hosts(&[0, 1], &[], |host| before.borrow_mut().push(kernel(host)));
    for (name, number) in [("one", 1), ("two", 2)] {
        cluster.shell_pod(name, number);
    }
    let ranges = ["h1", "h2"].map(|node| cluster.kubectl().jsonpath(&["node", node], "{.spec.podCIDR}"));
    let now = kernel(cluster.host(1));
    assert!(now.contains("proto 111") && now.contains("vxorch") && now.contains("28527") && now.contains("masquerade"), "{now}");
    // One in order, without its pods; one killed in the middle of everything, whose pods run on.
    cluster.kubectl().run(["delete", "pod", "one", "--timeout=60s"]);
    cluster.kill(2);
    cluster.stop(1);
    for (number, range) in [1, 2].into_iter().zip(ranges) {
        let config = NetworkConfig {
            node: format!("h{number}"),
            pod_cidr: range.parse().unwrap(),
            cluster_cidr: cluster.cluster_cidr().parse().unwrap(),
            mtu: 1_500,
        };
        clean_up(cluster.host(number), config);
        let after = kernel(cluster.host(number));
        assert_eq!(after, before.borrow()[number - 1], "host {number}");
    }
}
