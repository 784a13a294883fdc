//! The rules that pods need survive Docker and whoever flushes them, and nothing is left when the network is taken away.

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

/// All that `orch` could leave on a host, in the kernel, in the engine and on the disk.
fn everything(host: &Host) -> String {
    let folder = host.folder.display();
    let script = format!(
        "echo '# links'; ip -br link; echo '# addresses'; ip -4 -br addr; echo '# routes'; ip -4 route show table all; echo '# rules'; ip rule; \
         echo '# neighbours'; ip neigh show nud permanent; echo '# fdb'; bridge fdb; echo '# nft'; nft -s list ruleset; \
         echo '# iptables'; for p in iptables iptables-legacy; do $p-save | grep -v '^#' | sed 's/\\[.*\\]//'; done; \
         echo '# switches'; cd /proc/sys/net/ipv4; cat ip_forward conf/all/route_localnet conf/all/rp_filter; \
         echo '# mounts'; cut -d' ' -f2 /proc/self/mounts | grep {folder} | sort; \
         echo '# containers'; docker ps -aq; echo '# images'; docker images -q | sort; echo '# volumes'; docker volume ls -q; \
         echo '# processes'; ps -eo args= | grep -e pause -e shim -e 'orch ' | grep -v grep; \
         echo '# ports'; ss -lntuH | sort; echo '# files'; ls {folder}"
    );
    // Groups of IPv6 come and go with time; the log is the test's, as is the copy of the kubeconfig.
    let is_ours =
        |line: &&str| ["33:33:", "01:00:5e", "orch.log"].iter().all(|part| !line.contains(part)) && *line != "kubeconfig";
    host.exec(&script).lines().filter(is_ours).collect::<Vec<_>>().join("\n")
}

fn uninstall(host: &Host, more: &str) -> String {
    let (orch, folder) = (env!("CARGO_BIN_EXE_orch"), host.folder.display());
    let said = host
        .exec(&format!("{orch} uninstall --yes --data-dir={folder}/orch --write-kubeconfig={folder}/kubeconfig.local {more}"));
    println!("{}:\n{said}", host.name);
    said
}

#[test]
fn nothing_is_left_of_nodes_that_were_uninstalled() {
    let before = std::cell::RefCell::new(Vec::new());
    let mut cluster = NetCluster::start_with_hosts(&[0, 1], &[], |host| before.borrow_mut().push(everything(host)));
    let kubectl = cluster.kubectl();
    for (name, number) in [("one", 1), ("two", 2)] {
        cluster.shell_pod(name, number);
    }
    kubectl.run(["expose", "pod", "one", "--type=NodePort", "--port=80"]);
    kubectl.run(["create", "secret", "generic", "s", "--from-literal=a=b"]);
    let mount = "volumes: [{name: s, secret: {secretName: s}}, {name: m, emptyDir: {medium: Memory}}]";
    let container =
        "image: tools, command: [sleep, infinity], volumeMounts: [{name: s, mountPath: /s}, {name: m, mountPath: /m}]";
    cluster.pod("three", 2, container, mount);
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {matchLabels: {app: two}}}}";
    kubectl.manifest(&["apply"], policy).unwrap();
    wait_for("the policy's table", MINUTE, || {
        let tables = cluster.host(2).exec("nft list tables");
        if tables.contains("-policy") && tables.contains("-proxy") { Ok(()) } else { Err(tables) }
    });
    let pods = kubectl.jsonpath(&["pods"], "{.items[*].metadata.uid}");
    for number in [1, 2] {
        let now = everything(cluster.host(number));
        let all = ["proto 111", "vxorch", "28527", "masquerade", "DOCKER-USER -s", "pause", "fib saddr . iif"];
        for part in all {
            assert!(now.contains(part), "{part} is not in\n{now}");
        }
    }
    // One in order, one killed in the middle of everything, whose pods run on.
    cluster.kill(2);
    cluster.stop(1);
    for number in [1, 2] {
        uninstall(cluster.host(number), "");
        let after = everything(cluster.host(number));
        assert_eq!(after, before.borrow()[number - 1], "host {number}");
        let groups = cluster.host(number).exec("find /sys/fs/cgroup -type d -path '*kubepods*' 2>/dev/null || true");
        assert!(pods.split(' ').all(|uid| !groups.contains(uid)) || number == 1, "{groups}");
    }
    let again = uninstall(cluster.host(1), "");
    assert!(again.contains("nothing is installed"), "{again}");
}

/// A library that is loaded before orch's own, and answers for a kernel that was built without nfnetlink.
const WITHOUT_NETFILTER: &str = "
#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int socket(int domain, int type, int protocol) {
    if (domain == AF_NETLINK && protocol == 12) { errno = EPROTONOSUPPORT; return -1; }
    return syscall(SYS_socket, domain, type, protocol);
}
";

/// The old iptables lets pods out; that Services and policies cannot be had is said where users look, and nothing runs unfiltered.
#[test]
fn a_kernel_without_nf_tables_says_so() {
    let cluster = NetCluster::start_with_hosts(&[0], &[], |host| {
        let (source, library) = (host.folder.join("preload.c"), host.folder.join("preload.so"));
        std::fs::write(&source, WITHOUT_NETFILTER).unwrap();
        crate::support::run("cc", ["-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap()]);
        host.exec("iptables -P FORWARD ACCEPT; mount --bind $(which xtables-legacy-multi) $(which xtables-nft-multi)");
    });
    let kubectl = cluster.kubectl();
    let event = wait_for("an event about the node", MINUTE, || {
        let events = kubectl.run(["get", "events", "-A"]);
        events.lines().find(|line| line.contains("FailedToSyncServiceRules")).map(str::to_owned).ok_or(events)
    });
    assert!(event.contains("node/h1") && event.contains("Protocol not supported"), "{event}");
    let pod = cluster.shell_pod("one", 1);
    assert_eq!(cluster.source_seen_by_machine(&pod), cluster.host(1).ip.to_string(), "masqueraded");
    let chain = cluster.host(1).exec("iptables-legacy -t nat -S");
    assert!(chain.contains("-j MASQUERADE") && chain.contains("-N orch-"), "{chain}");
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}}}";
    kubectl.manifest(&["apply"], policy).unwrap();
    kubectl.run(["run", "two", "--image=tools", "--image-pull-policy=Never", "--", "sleep", "infinity"]);
    wait_for("an event about the pod", MINUTE, || {
        let events = kubectl.run(["get", "events", "--field-selector=involvedObject.name=two"]);
        let is_said = events.contains("network policies to be in force") && events.contains("Protocol not supported");
        if is_said { Ok(()) } else { Err(events) }
    });
}
