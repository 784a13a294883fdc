//! What a Service promises beyond being reached, on hosts that have neither `nft` nor `iptables`: source addresses, large transfers over
//! VXLAN, policies, affinity that ends, endpoints on their way out, and health ports.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::TcpMaxSeg};

use crate::cluster::{MINUTE, NetCluster, NetPod};
use crate::hosts::Host;
use crate::services::{SERVER, echo_udp, from_pod, service};
use crate::support::{Kubectl, curl, wait_for};

const SERVICES: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: far}
spec:
  type: LoadBalancer
  selector: {role: far}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: tcp, port: 81, targetPort: 8081}
  - {name: udp, port: 81, protocol: UDP, targetPort: 8082}
---
apiVersion: v1
kind: Service
metadata: {name: kept}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: 30005
  selector: {role: far}
  ports: [{port: 82, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: inner}
spec:
  internalTrafficPolicy: Local
  selector: {role: far}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: close}
spec:
  trafficDistribution: PreferSameNode
  selector: {any: "yes"}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 2}}
  selector: {any: "yes"}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: unready}
spec:
  publishNotReadyAddresses: true
  selector: {role: unready}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: talk}
spec:
  type: NodePort
  selector: {talk: "yes"}
  ports: [{port: 1, protocol: UDP, targetPort: 8082}]
---
apiVersion: v1
kind: Service
metadata: {name: last}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {role: leaving}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: sctp}
spec:
  selector: {role: far}
  ports: [{name: web, port: 80, targetPort: 8080}, {name: stream, port: 80, protocol: SCTP, targetPort: 9}]
---
apiVersion: v1
kind: Pod
metadata: {name: unready, labels: {role: unready}}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: orch-test, imagePullPolicy: Never, readinessProbe: {httpGet: {path: /, port: 9999}}}
---
apiVersion: v1
kind: Pod
metadata: {name: leaving, labels: {role: leaving}}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 120
  containers:
  - {name: main, image: orch-test, imagePullPolicy: Never, lifecycle: {preStop: {sleep: {seconds: 100}}}}
"#;

/// From now on the host forwards nothing by itself, and has no program that sets rules. Its engine has started and needs them no more.
fn hide_programs(host: &Host) {
    host.exec("iptables -P FORWARD DROP");
    let programs = "nft iptables iptables-restore iptables-save iptables-legacy xtables-nft-multi xtables-legacy-multi";
    host.exec(&format!("for f in $(which -a {programs}); do mount --bind /dev/null $f || exit 1; done"));
    assert!(host.try_exec("nft list tables").is_err() && host.try_exec("iptables -S").is_err());
}

/// The one pod that answers at a URL, soon and then always.
fn answers(what: &str, get: &dyn Fn(&str) -> Result<String, String>, url: &str, expected: &str) {
    wait_for(&format!("{what}: {url} to be answered by {expected}"), MINUTE, || {
        let seen = (0..6).map(|_| get(url)).collect::<Result<Vec<_>, _>>()?;
        if seen.iter().all(|name| name.trim() == expected) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

#[test]
fn what_a_service_promises_without_nft_and_iptables() {
    let cluster = NetCluster::start_with_hosts(&[0, 1], &[], hide_programs);
    let kubectl = cluster.kubectl();
    // Somebody has the health port of the first host.
    let squatter = cluster.host(1).spawn("squatter.log", "python3", ["-m", "http.server", "30005"]);
    wait_for("the squatter", MINUTE, || curl(&format!("http://{}:30005/", cluster.host(1).ip)));
    wait_for("the services", MINUTE, || kubectl.manifest(&["apply"], SERVICES));
    let with_host_port = SERVER.replace("name: http}", "name: http, hostPort: 9080}");
    let far = cluster.pod("far", 2, &with_host_port, "");
    let near = cluster.pod("near", 1, SERVER, "");
    kubectl.run(["label", "pod", "far", "role=far", "any=yes"]);
    kubectl.run(["label", "pod", "near", "any=yes"]);
    let shells = [cluster.shell_pod("shell1", 1), cluster.shell_pod("shell2", 2)];

    ways_in(&cluster, &kubectl);
    large_transfers(&cluster, &kubectl);
    health_ports(&cluster, &kubectl, squatter);
    chosen_endpoints(&kubectl, &shells);
    udp_goes_on(&cluster, &kubectl);
    until_the_last_moment(&cluster, &kubectl, &shells[0]);
    sctp(&cluster, &kubectl, &near, &far);
}

/// From outside, where the engine's policy for forwarding is to drop.
fn ways_in(cluster: &NetCluster, kubectl: &Kubectl) {
    let node_port = service(kubectl, "far", "{.spec.ports[0].nodePort}");
    let udp_port = service(kubectl, "far", "{.spec.ports[2].nodePort}");
    let [one, two] = [cluster.host(1).ip, cluster.host(2).ip];
    for ip in [one, two] {
        answers("outside", &curl, &format!("http://{ip}:{node_port}/"), "far");
        answers("outside", &curl, &format!("http://{ip}/"), "far");
        for port in [&udp_port, "81"] {
            wait_for("UDP", MINUTE, || echo_udp(&format!("{ip}:{port}")));
        }
    }
    assert_eq!(wait_for("the host port", MINUTE, || curl(&format!("http://{two}:9080/"))).trim(), "far");
    assert!(curl(&format!("http://{one}:9080/")).is_err(), "a host port is its node's");
    let balanced = wait_for("the balancer with policy Local", MINUTE, || {
        let ip = service(kubectl, "kept", "{.status.loadBalancer.ingress[*].ip}");
        if ip.is_empty() { Err(ip) } else { Ok(ip) }
    });
    assert_eq!(balanced, two.to_string(), "only the node that has the pod");
    let kept = service(kubectl, "kept", "{.spec.ports[0].nodePort}");
    for url in [format!("http://{two}:82/ip"), format!("http://{two}:{kept}/ip")] {
        let caller = wait_for(&url, MINUTE, || curl(&url));
        assert_eq!(caller.trim(), cluster.machine().to_string(), "{url}");
    }
    assert!(curl(&format!("http://{one}:{kept}/")).is_err(), "dropped where there is no pod");
}

/// 10 MB both ways at once, by a node to a pod behind VXLAN; and neither side sends segments that are too large for it.
fn large_transfers(cluster: &NetCluster, kubectl: &Kubectl) {
    const BYTES: usize = 10 << 20;
    let port: u16 = service(kubectl, "far", "{.spec.ports[1].nodePort}").parse().unwrap();
    let mut stream = TcpStream::connect((cluster.host(1).ip, port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let segment = getsockopt(&stream, TcpMaxSeg).unwrap();
    assert!((1_000..=1_410).contains(&segment), "1500 of the link, less 50 of VXLAN and 40 of headers: {segment}");
    let sent: Vec<u8> = (0..BYTES).map(|at| (at / 7 % 251) as u8).collect();
    let mut writer = stream.try_clone().unwrap();
    let received = std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        let mut received = vec![0; BYTES];
        stream.read_exact(&mut received).unwrap();
        received
    });
    assert!(received == sent, "what was echoed is not what was sent");
}

/// A node says how many pods it has; one whose port is taken says so, and has it when it is free.
fn health_ports(cluster: &NetCluster, kubectl: &Kubectl, squatter: crate::hosts::Process) {
    let ask = |host: usize| curl(&format!("http://{}:30005/", cluster.host(host).ip));
    let with_one = wait_for("the health port", MINUTE, || ask(2));
    assert!(with_one.contains("\"localEndpoints\": 1") && with_one.contains("\"name\": \"kept\""), "{with_one}");
    wait_for("the event about the port that is taken", MINUTE, || {
        let events = kubectl.run(["get", "events", "--field-selector", "reason=FailedToStartServiceHealthcheck"]);
        let is_told = events.contains("service/kept") && events.contains("node h1 failed to start healthcheck");
        if is_told { Ok(()) } else { Err(events) }
    });
    squatter.kill();
    wait_for("the port that is free again", MINUTE, || {
        let said = ask(1)?;
        if said.contains("\"localEndpoints\": 0") { Ok(()) } else { Err(said) }
    });
}

fn chosen_endpoints(kubectl: &Kubectl, [one, two]: &[NetPod<'_>; 2]) {
    let url = |name: &str| format!("http://{}/", service(kubectl, name, "{.spec.clusterIP}"));
    answers("the same node", &from_pod(two), &url("inner"), "far");
    let dropped = from_pod(one)(&url("inner")).unwrap_err();
    assert!(dropped.contains("timed out"), "there are endpoints, but elsewhere: {dropped}");
    answers("the nearest", &from_pod(one), &url("close"), "near");
    answers("the nearest", &from_pod(two), &url("close"), "far");
    answers("not ready, and published", &from_pod(one), &url("unready"), "unready");
    let sticky = url("sticky");
    // Asked again and again the client stays; after two seconds of silence it may go elsewhere.
    let first = wait_for("the sticky Service", MINUTE, || from_pod(one)(&sticky));
    answers("the same", &from_pod(one), &sticky, first.trim());
    let has_moved = (0..16).any(|_| {
        std::thread::park_timeout(Duration::from_millis(2_500));
        from_pod(one)(&sticky).unwrap() != first
    });
    assert!(has_moved, "the client stays for ever with {first}");
}

/// A client that sends on from one port goes to the new endpoint when the old one has gone.
fn udp_goes_on(cluster: &NetCluster, kubectl: &Kubectl) {
    drop(cluster.pod("gone", 2, SERVER, ""));
    kubectl.run(["label", "pod", "gone", "talk=yes"]);
    let to = format!("{}:{}", cluster.host(1).ip, service(kubectl, "talk", "{.spec.ports[0].nodePort}"));
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let talk = || {
        socket.send_to(b"hello", &to).map_err(|error| error.to_string())?;
        socket.recv(&mut [0; 16]).map_err(|error| error.to_string())
    };
    wait_for("an echo", MINUTE, talk);
    kubectl.run(["label", "pod", "near", "talk=yes"]);
    kubectl.run(["delete", "pod", "gone"]);
    // The kernel would keep the old way as long as the client sends.
    wait_for("an echo of the other pod", Duration::from_secs(20), talk);
}

/// A pod on its way out serves while there is no other.
fn until_the_last_moment(cluster: &NetCluster, kubectl: &Kubectl, shell: &NetPod<'_>) {
    let inside = format!("http://{}/", service(kubectl, "last", "{.spec.clusterIP}"));
    let outside = format!("http://{}:{}/", cluster.host(2).ip, service(kubectl, "last", "{.spec.ports[0].nodePort}"));
    answers("before", &from_pod(shell), &inside, "leaving");
    kubectl.run(["delete", "pod", "leaving", "--wait=false"]);
    wait_for("the endpoint to be on its way out", MINUTE, || {
        let slices = ["endpointslices", "-l", "kubernetes.io/service-name=last"];
        let conditions = kubectl.jsonpath(&slices, "{.items[0].endpoints[0].conditions}");
        let is_out = conditions.contains(r#""ready":false,"serving":true,"terminating":true"#);
        if is_out { Ok(()) } else { Err(conditions) }
    });
    answers("meanwhile, from a pod", &from_pod(shell), &inside, "leaving");
    answers("meanwhile, from outside", &curl, &outside, "leaving");
    kubectl.run(["delete", "pod", "leaving", "--grace-period=0", "--force"]);
    wait_for("it to be refused", MINUTE, || match from_pod(shell)(&inside) {
        Err(error) if error.contains("connect to") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// A first packet of SCTP, as this kernel has no sockets for it, and one that waits for it; both on raw sockets.
const SCTP: &str = r#"
import socket, struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8): crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
if sys.argv[1] == "send":
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 7, 65536, 1, 1, 7)
    packet = lambda crc: struct.pack("!HHI", 4000, 80, 0) + struct.pack("<I", crc) + chunk
    raw.sendto(packet(crc32c(packet(0))), (sys.argv[2], 0))
else:
    raw.settimeout(20)
    print("waiting", flush=True)
    data, source = raw.recvfrom(2048)
    header = (data[0] & 15) * 4
    print(source[0], struct.unpack("!H", data[header + 2:header + 4])[0], flush=True)
"#;

/// SCTP is translated too, and takes nothing from TCP on the same port.
fn sctp(cluster: &NetCluster, kubectl: &Kubectl, near: &NetPod<'_>, far: &NetPod<'_>) {
    let ip = service(kubectl, "sctp", "{.spec.clusterIP}");
    let script = cluster.host(1).folder.join("sctp.py");
    std::fs::write(&script, SCTP).unwrap();
    let inside = |pod: &NetPod<'_>| {
        let pid = cluster.host(pod.node).docker(["inspect", "-f", "{{.State.Pid}}", &pod.container()]);
        format!("nsenter -t {} -n python3 {}", pid.trim(), script.display())
    };
    let listening = cluster.host(far.node).spawn("sctp.log", "sh", ["-c", &format!("{} receive", inside(far))]);
    wait_for("the receiver", MINUTE, || {
        let log = cluster.host(far.node).log("sctp.log");
        if log.contains("waiting") { Ok(()) } else { Err(log) }
    });
    cluster.host(near.node).exec(&format!("{} send {ip}", inside(near)));
    wait_for("the packet", MINUTE, || {
        let log = cluster.host(far.node).log("sctp.log");
        if log.contains(&format!("{} 9", near.ip)) { Ok(()) } else { Err(log) }
    });
    drop(listening);
    let shell = cluster.existing("shell1", 1, near.ip);
    answers("TCP beside it", &from_pod(&shell), &format!("http://{ip}/"), "far");
}
