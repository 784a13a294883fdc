//! The network between nodes: every pod reaches every pod by its address; direct on one subnet, by VXLAN between two.

use std::fmt::Write;
use std::time::Duration;

use crate::cluster::{MINUTE, NetCluster, NetPod};
use crate::support::{text, wait_for};

/// The web server of these tests: `/ip` answers with the caller's address.
const SERVER: &str = "image: orch-test, ports: [{containerPort: 8080}]";

fn routes(cluster: &NetCluster, host: usize) -> String {
    cluster.host(host).exec("ip -4 route show proto 111")
}

/// The VXLAN device of a host.
fn device(cluster: &NetCluster, host: usize) -> Option<String> {
    let links = cluster.host(host).exec("ip -o link show type vxlan");
    links.split(':').nth(1).map(|name| name.trim().to_owned())
}

fn fetch(from: &NetPod<'_>, url: &str) -> Result<String, String> {
    from.try_exec(&format!("curl -sS --max-time 3 {url}"))
}

/// Fetches until it works: a server needs a moment to listen, and routes may be on their way.
fn reach(from: &NetPod<'_>, url: &str) -> String {
    wait_for(&format!("{url} from pod {} on host {}", from.name, from.node), MINUTE, || fetch(from, url))
}

#[test]
fn pods_reach_pods_and_nodes_on_every_host() {
    // The strict filter on every host: no way there differs from the way back.
    let cluster = NetCluster::start_with_hosts(&[0, 0, 1], &[], |host| {
        host.exec("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done");
    });
    let servers: Vec<_> = (1..=3).map(|host| cluster.pod(&format!("server{host}"), host, SERVER, "")).collect();
    let shells: Vec<_> = (1..=3).map(|host| cluster.shell_pod(&format!("shell{host}"), host)).collect();
    let on_node = "hostNetwork: true";
    let node_servers: Vec<_> = (1..=3).map(|host| cluster.pod(&format!("host{host}"), host, SERVER, on_node)).collect();
    let mut seen = String::new();
    for shell in &shells {
        for server in &servers {
            let caller = reach(shell, &format!("http://{}:8080/ip", server.ip));
            writeln!(seen, "{} -> {}: {caller}", shell.name, server.name).unwrap();
            assert_eq!(caller, shell.ip.to_string(), "a pod is seen with its own address\n{seen}");
        }
        for server in &node_servers {
            let caller = reach(shell, &format!("http://{}:8080/ip", server.ip));
            writeln!(seen, "{} -> {}: {caller}", shell.name, server.name).unwrap();
            assert_eq!(caller, shell.ip.to_string(), "by nodes too\n{seen}");
        }
    }
    // From nodes to pods, and to itself.
    for host in 1..=3 {
        for server in &servers {
            let caller = cluster.host(host).exec(&format!("curl -sS --max-time 5 http://{}:8080/ip", server.ip));
            let node = cluster.host(host).ip.to_string();
            assert!(caller == node || server.node == host, "node {host} -> {}: {caller}", server.name);
        }
    }
    let own = reach(&shells[0], &format!("http://{}:8080/ip", servers[0].ip));
    assert_eq!(own, shells[0].ip.to_string());

    // Direct where the peer is on the link, VXLAN where not.
    let first = routes(&cluster, 1);
    assert!(first.lines().any(|line| line.contains(&format!("via {} dev eth0", cluster.host(2).ip))), "{first}");
    assert_eq!(first.matches("vxorch").count(), 1, "{first}");
    assert_eq!(routes(&cluster, 3).matches("vxorch").count(), 2);
    // To the outside with the node's address.
    let machine = cluster.machine();
    for shell in &shells {
        let peer = cluster.source_seen_by_machine(shell);
        assert_eq!(peer, cluster.host(shell.node).ip.to_string(), "{} -> {machine}", shell.name);
    }
    cluster.wait_condition("h1", "NetworkUnavailable", "False RouteCreated");
    drop(seen);
}

/// A ping that counts, in the background of a pod.
fn start_ping(pod: &NetPod<'_>, to: impl std::fmt::Display) {
    pod.exec(&format!("(ping -i 0.1 -w 600 {to} > /tmp/ping; true) > /dev/null 2>&1 &"));
}

/// Stops the ping: packets sent and received.
fn stop_ping(pod: &NetPod<'_>) -> (u32, u32) {
    pod.exec("kill -INT $(pidof ping)");
    let line = wait_for("the summary of ping", MINUTE, || {
        let text = pod.exec("cat /tmp/ping");
        text.lines().find(|line| line.contains("packets transmitted")).map(str::to_owned).ok_or(text)
    });
    let mut numbers = line.split(|letter: char| !letter.is_ascii_digit()).filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn pods_talk_on_whatever_happens_to_agents_server_and_links() {
    let mut cluster = NetCluster::start(&[0, 0, 1]);
    let names = [("one", 1), ("two", 2), ("three", 3)];
    let ips: Vec<_> = names.map(|(name, host)| cluster.shell_pod(name, host).ip).to_vec();
    let containers: Vec<_> = names.map(|(name, host)| cluster.existing(name, host, ips[host - 1]).container()).to_vec();
    let pod = |cluster: &NetCluster, number: usize| -> usize { cluster.host(number).name[1..].parse().unwrap() };
    assert_eq!(pod(&cluster, 2), 2);
    let at = |cluster: &NetCluster, number: usize, script: &str| {
        cluster.host(number).try_exec(&format!("docker exec {} sh -c '{script}'", containers[number - 1]))
    };
    let ping = |cluster: &NetCluster, from: usize, to: usize| at(cluster, from, &format!("ping -c1 -W1 {}", ips[to - 1]));
    let all = |cluster: &NetCluster| {
        for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)] {
            wait_for(&format!("pod {from} to reach pod {to}"), MINUTE, || ping(cluster, from, to));
        }
    };
    all(&cluster);

    // Agents killed, the server stopped: established pods lose nothing.
    for (from, to) in [(1, 2), (2, 3)] {
        start_ping(&cluster.existing(names[from - 1].0, from, ips[from - 1]), ips[to - 1]);
    }
    let before = [routes(&cluster, 1), routes(&cluster, 2), routes(&cluster, 3)];
    cluster.kill(2);
    cluster.kill(3);
    std::thread::park_timeout(Duration::from_secs(1));
    cluster.restart(2);
    cluster.restart(3);
    cluster.stop(1);
    std::thread::park_timeout(Duration::from_secs(3));
    // An agent that starts while there is no server.
    cluster.kill(3);
    cluster.restart(3);
    std::thread::park_timeout(Duration::from_secs(2));
    cluster.restart(1);
    cluster.wait_ready();
    for (from, _) in [(1, 2), (2, 3)] {
        let (sent, received) = stop_ping(&cluster.existing(names[from - 1].0, from, ips[from - 1]));
        println!("host {from}: {sent} packets sent, {received} received");
        assert!(sent > 50 && sent == received, "{received} of {sent} packets arrived");
    }
    assert_eq!([routes(&cluster, 1), routes(&cluster, 2), routes(&cluster, 3)], before);

    // A cable out and in again; an interface down and up; its address away and back.
    cluster.cut(cluster.host(2));
    assert!(ping(&cluster, 1, 2).is_err());
    cluster.join(cluster.host(2));
    all(&cluster);
    cluster.host(2).exec("ip link set eth0 down");
    assert_eq!(routes(&cluster, 2).matches("dev eth0").count(), 0, "the kernel took the routes");
    cluster.host(2).exec("ip link set eth0 up");
    cluster.route_out(cluster.host(2));
    all(&cluster);
    assert_eq!(routes(&cluster, 2), before[1]);

    // What others break is repaired.
    let vxlan = device(&cluster, 1).unwrap();
    let second = cluster.host(2).ip;
    for breakage in [
        format!("ip link del {vxlan}"),
        format!("ip link set {vxlan} down"),
        "ip route flush proto 111".to_owned(),
        format!("ip neigh flush nud permanent dev {vxlan}"),
        format!("bridge fdb show dev {vxlan} | while read mac rest; do bridge fdb del $mac dev {vxlan}; done"),
        "ip rule del pref 28527".to_owned(),
        format!("ip addr del {second}/24 dev eth0; ip addr add {second}/24 dev eth0"),
    ] {
        let host = if breakage.contains("eth0") { 2 } else { 1 };
        cluster.host(host).exec(&breakage);
        if host == 2 {
            cluster.route_out(cluster.host(2));
        }
        wait_for(&format!("the repair of: {breakage}"), MINUTE, || {
            let now =
                (routes(&cluster, host), cluster.host(1).exec("ip rule; ip neigh || true; bridge fdb | grep vxorch || true"));
            let is_whole = now.0 == before[host - 1] && now.1.contains("28527") && now.1.contains("PERMANENT");
            if is_whole && now.1.contains("dst") { Ok(()) } else { Err(format!("{}\n{}", now.0, now.1)) }
        });
        all(&cluster);
    }

    // A node that is deleted loses its routes everywhere; it registers anew and is reached again.
    cluster.stop(3);
    let range = cluster.kubectl().jsonpath(&["node", "h3"], "{.spec.podCIDR}");
    cluster.kubectl().run(["delete", "node", "h3"]);
    for host in [1, 2] {
        wait_for("the routes of the deleted node to go", MINUTE, || {
            let now = routes(&cluster, host);
            if now.contains(&range) || device(&cluster, host).is_some() { Err(now) } else { Ok(()) }
        });
        let rules = cluster.host(host).exec("ip rule");
        assert!(!rules.contains("28527"), "{rules}");
    }
}

#[test]
fn large_packets_fit() {
    let cluster = NetCluster::start(&[0, 0, 1]);
    let one = cluster.shell_pod("one", 1);
    let near = cluster.shell_pod("near", 2);
    let far = cluster.shell_pod("far", 3);
    assert!(one.exec("ip link show eth0").contains("mtu 1500"));
    let ping = |to: &NetPod<'_>, bytes: u32| one.try_exec(&format!("ping -c1 -W1 -s {bytes} {}", to.ip));
    wait_for("the near pod", MINUTE, || ping(&near, 1472));
    wait_for("the far pod", MINUTE, || ping(&far, 1422));
    for to in [&near, &far] {
        // 50 MB through netcat, and their checksum. It ends when its input or the other side does, so its input stays open.
        to.exec("(sleep 100 | nc -l -p 9000 | md5sum > /tmp/sum) > /dev/null 2>&1 &");
        wait_for("netcat to listen", MINUTE, || to.try_exec("netstat -ltn | grep -q :9000"));
        one.exec(&format!("head -c 52428800 /dev/zero | nc -w 5 {} 9000", to.ip));
        wait_for("the checksum", MINUTE, || {
            let sum = to.exec("cat /tmp/sum");
            if sum.starts_with("25e317773f308e446cc84c503a6d1f85") { Ok(()) } else { Err(sum) }
        });
        // Datagrams that fill the pod's own MTU.
        let answer = wait_for("a large datagram", MINUTE, || ping(to, 1472));
        assert!(answer.contains("1 packets received"), "{answer}");
    }
    // With "don't fragment" the node says how much fits.
    let inside = |script: &str| {
        let pid = cluster.host(1).exec(&format!("docker inspect -f '{{{{.State.Pid}}}}' {}", one.container()));
        cluster.host(1).output(&format!("nsenter -t {} -n {script} 2>&1", pid.trim()))
    };
    let full = text(&inside(&format!("ping -M do -c1 -W1 -s 1472 {}", near.ip)).stdout);
    assert!(full.contains("1 received"), "{full}");
    let refused = text(&inside(&format!("ping -M do -c1 -W1 -s 1472 {}", far.ip)).stdout);
    assert!(refused.contains("mtu=1450") || refused.contains("mtu = 1450"), "{refused}");
    let fits = text(&inside(&format!("ping -M do -c1 -W1 -s 1422 {}", far.ip)).stdout);
    assert!(fits.contains("1 received"), "{fits}");
}

#[test]
fn a_route_of_others_is_left_alone_and_reported() {
    let cluster = NetCluster::start(&[0, 0]);
    let kubectl = cluster.kubectl();
    let range = kubectl.jsonpath(&["node", "h2"], "{.spec.podCIDR}");
    let foreign = format!("{range} via {} dev eth0 proto static", cluster.machine());
    cluster.host(1).exec(&format!("ip route del {range}; ip route replace {foreign}"));
    cluster.wait_condition("h1", "NetworkUnavailable", "True NoRouteCreated");
    assert!(cluster.host(1).exec(&format!("ip route show {range}")).contains("proto static"), "it is still there");
    let event = wait_for("an event about it", MINUTE, || {
        let events = kubectl.run(["get", "events", "-A"]);
        events.lines().find(|line| line.contains("FailedToCreateRoute")).map(str::to_owned).ok_or(events)
    });
    assert!(event.contains("node/h1") && event.contains("is in the way") && event.contains(&range), "{event}");
    let taints = kubectl.jsonpath(&["node", "h1"], "{.spec.taints[*].key}");
    println!("{event}\ntaints: {taints}");
    cluster.host(1).exec(&format!("ip route del {range}"));
    cluster.wait_condition("h1", "NetworkUnavailable", "False RouteCreated");
    assert!(routes(&cluster, 1).contains(&range));
}
