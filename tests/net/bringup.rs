//! The hosts themselves: up within seconds, with pods on each, and nothing left when they are down.

use std::process::Command;
use std::time::Instant;

use crate::cluster::NetCluster;
use crate::support::text;

#[test]
fn three_hosts_are_up_in_seconds_and_leave_nothing() {
    let started = Instant::now();
    let mut cluster = NetCluster::start(&[0, 0, 1]);
    println!("three ready nodes after {:?}", started.elapsed());
    let kubectl = cluster.kubectl();
    let pods: Vec<_> = (1..=3).map(|host| cluster.shell_pod(&format!("p{host}"), host)).collect();
    for pod in &pods {
        assert_eq!(kubectl.run(["exec", &pod.name, "--", "hostname"]).trim(), pod.name);
        pod.ping(cluster.host(pod.node).ip).unwrap();
        pod.ping(cluster.machine()).unwrap();
    }
    assert!(cluster.host(1).try_exec(&format!("ping -c 1 -W 2 {}", cluster.host(3).ip)).is_ok(), "the router routes");
    drop(pods);
    cluster.kill(2);
    cluster.restart(2);
    cluster.wait_node("h2", "True");
    let interface = format!("orch-hosts{}", cluster.slot.number);
    let mark = format!("orch-hosts-{}-", cluster.slot.number);
    drop(cluster);
    let ps = text(&Command::new("ps").args(["-eo", "args"]).output().unwrap().stdout);
    assert!(!ps.contains(&mark), "{ps}");
    assert!(!Command::new("ip").args(["link", "show", &interface]).output().unwrap().status.success());
}
