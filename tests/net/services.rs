//! Services across hosts: every way in, from pods, nodes and outside; endpoints that come and go; a rollout that no client notices.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use crate::cluster::{MINUTE, NetCluster, NetPod};
use crate::support::{Kubectl, curl, wait_for};

/// `/` answers with the pod's name, `/ip` with the caller's address; `/fail` makes it unready.
pub const SERVER: &str = "image: orch-test, ports: [{containerPort: 8080, name: http}], \
                      readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 1, failureThreshold: 1}";

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: LoadBalancer
  selector: {role: echo}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: tcp, port: 81, targetPort: 8081}
  - {name: udp, port: 81, protocol: UDP, targetPort: 8082}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {role: echo}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  sessionAffinity: ClientIP
  selector: {role: echo}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: heads}
spec:
  clusterIP: None
  selector: {role: echo}
  ports: [{port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {role: nobody}
  ports: [{port: 80}]
"#;

/// The names of the pods that answer at a URL, over as many tries as make a miss unlikely.
fn answering(get: &dyn Fn(&str) -> Result<String, String>, url: &str) -> BTreeSet<String> {
    (0..40).filter_map(|_| get(url).ok()).map(|name| name.trim().to_owned()).collect()
}

fn all_answer(what: &str, get: &dyn Fn(&str) -> Result<String, String>, url: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    wait_for(&format!("{what}: {url} to be answered by {expected:?}"), MINUTE, || {
        let seen = answering(get, url);
        if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

pub fn from_pod<'a>(pod: &'a NetPod<'a>) -> impl Fn(&str) -> Result<String, String> + 'a {
    |url| pod.try_exec(&format!("curl -sS --max-time 3 {url}"))
}

pub fn echo_udp(to: &str) -> Result<(), String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.send_to(b"hello", to).map_err(|error| error.to_string())?;
    let mut answer = [0; 16];
    let (length, _) = socket.recv_from(&mut answer).map_err(|error| error.to_string())?;
    if &answer[..length] == b"hello" { Ok(()) } else { Err(format!("{answer:?}")) }
}

pub fn service(kubectl: &Kubectl, name: &str, path: &str) -> String {
    kubectl.jsonpath(&["service", name], path)
}

#[test]
fn every_way_to_a_service() {
    // As an engine has it that switched forwarding on by itself.
    let cluster = NetCluster::start_with_hosts(&[0, 0, 1], &[], |host| drop(host.exec("iptables -P FORWARD DROP")));
    let kubectl = cluster.kubectl();
    kubectl.manifest(&["apply"], SERVICE).unwrap();
    let names = ["echo1", "echo2", "echo3"];
    for (at, name) in names.iter().enumerate() {
        cluster.pod(name, at + 1, SERVER, "");
        kubectl.run(["label", "pod", name, "role=echo"]);
    }
    let clients: Vec<_> = (1..=3).map(|host| cluster.shell_pod(&format!("client{host}"), host)).collect();
    let ip = service(&kubectl, "echo", "{.spec.clusterIP}");

    // From pods by address and by name, from nodes, and from outside by every node's port and address.
    for client in &clients {
        all_answer(&client.name, &from_pod(client), &format!("http://{ip}/"), &names);
        all_answer(&client.name, &from_pod(client), "http://echo.default.svc.cluster.local/", &names);
        all_answer(&client.name, &from_pod(client), "http://heads:8080/", &names);
        assert_eq!(client.exec(&format!("echo hello | nc -w 2 {ip} 81")).trim(), "hello", "TCP on the port that UDP has too");
    }
    let node_port = service(&kubectl, "echo", "{.spec.ports[0].nodePort}");
    let balanced = wait_for("the load balancer's addresses", MINUTE, || {
        let all = service(&kubectl, "echo", "{.status.loadBalancer.ingress[*].ip}");
        if all.split(' ').count() == 3 { Ok(all) } else { Err(all) }
    });
    for number in 1..=3 {
        let host = cluster.host(number);
        let from_node = |url: &str| host.try_exec(&format!("curl -sS --max-time 3 {url}"));
        all_answer(&host.name, &from_node, &format!("http://{ip}/"), &names);
        assert!(balanced.split(' ').any(|address| address == host.ip.to_string()), "{balanced}");
        all_answer("outside", &curl, &format!("http://{}:{node_port}/", host.ip), &names);
        all_answer("outside", &curl, &format!("http://{}/", host.ip), &names);
        wait_for("UDP on the port that TCP has too", MINUTE, || echo_udp(&format!("{}:81", host.ip)));
        // Only its own pod, and the caller's own address.
        let near = service(&kubectl, "near", "{.spec.ports[0].nodePort}");
        all_answer("outside", &curl, &format!("http://{}:{near}/", host.ip), &[names[number - 1]]);
        assert_eq!(curl(&format!("http://{}:{near}/ip", host.ip)).unwrap().trim(), cluster.machine().to_string());
    }

    let sticky = format!("http://{}/", service(&kubectl, "sticky", "{.spec.clusterIP}"));
    wait_for("the sticky Service", MINUTE, || from_pod(&clients[0])(&sticky));
    assert_eq!(answering(&from_pod(&clients[0]), &sticky).len(), 1, "one client, one endpoint");
    let refused = from_pod(&clients[0])(&format!("http://{}/", service(&kubectl, "nobody", "{.spec.clusterIP}"))).unwrap_err();
    assert!(
        refused.contains("refused") || refused.contains("Couldn't connect") || refused.contains("Failed to connect"),
        "{refused}"
    );

    endpoints_come_and_go(&cluster, &kubectl, &clients[2], &ip);
    server_away(cluster, &ip);
}

/// An endpoint that is not ready gets nothing; one that is away takes no part; both come back.
fn endpoints_come_and_go(cluster: &NetCluster, kubectl: &Kubectl, client: &NetPod<'_>, ip: &str) {
    let url = format!("http://{ip}/");
    let unready = kubectl.jsonpath(&["pod", "echo2"], "{.status.podIP}");
    from_pod(client)(&format!("http://{unready}:8080/fail")).unwrap();
    all_answer("without the unready one", &from_pod(client), &url, &["echo1", "echo3"]);
    kubectl.run(["delete", "pod", "echo3", "--wait=false"]);
    all_answer("without the deleted one", &from_pod(client), &url, &["echo1"]);
    cluster.pod("echo3", 3, SERVER, "");
    kubectl.run(["label", "pod", "echo3", "role=echo"]);
    all_answer("with the new one", &from_pod(client), &url, &["echo1", "echo3"]);
}

/// While the server is stopped, pods talk, resolve names, and reach Services.
fn server_away(mut cluster: NetCluster, ip: &str) {
    let address = cluster.kubectl().jsonpath(&["pod", "client2"], "{.status.podIP}").parse().unwrap();
    cluster.stop(1);
    {
        let client = cluster.existing("client2", 2, address);
        for _ in 0..20 {
            let name = from_pod(&client)("http://echo.default.svc.cluster.local/").unwrap();
            assert!(name.contains("echo"), "{name}");
            from_pod(&client)(&format!("http://{ip}/")).unwrap();
        }
    }
    cluster.restart(1);
    cluster.wait_ready();
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: nginx:1.14
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 1}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80}]
"#;

/// Asks again and again, each time over a new connection, until a file appears; prints how many were answered and how many not.
const LOAD: &str = "ok=0; bad=0; while [ ! -e /tmp/stop ]; do \
                    if curl -sS -o /dev/null --fail --max-time 5 URL; then ok=$((ok+1)); else bad=$((bad+1)); fi; done; echo $ok $bad";

#[test]
fn a_rollout_that_no_client_notices() {
    let cluster = NetCluster::start(&[0, 0]);
    let kubectl = cluster.kubectl();
    kubectl.manifest(&["apply"], WEB).unwrap();
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=90s"]);
    let clients: Vec<_> = (1..=2).map(|host| cluster.shell_pod(&format!("load{host}"), host)).collect();
    let port = service(&kubectl, "web", "{.spec.ports[0].nodePort}");
    let urls = ["http://web/".to_owned(), format!("http://{}:{port}/", cluster.host(1).ip)];
    for (client, url) in clients.iter().zip(&urls) {
        wait_for(url, MINUTE, || from_pod(client)(url));
    }
    let counts: Vec<String> = thread::scope(|scope| {
        let loads: Vec<_> =
            clients.iter().zip(&urls).map(|(client, url)| scope.spawn(move || client.exec(&LOAD.replace("URL", url)))).collect();
        kubectl.run(["set", "image", "deploy/web", "nginx=nginx:1.15"]);
        kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
        for replicas in ["10", "2"] {
            kubectl.run(["scale", "deploy/web", &format!("--replicas={replicas}")]);
            kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
        }
        wait_for("the pods that are too many to be gone", MINUTE, || {
            let pods = kubectl.run(["get", "pods", "-l", "app=web", "-o", "name"]);
            if pods.lines().count() == 2 { Ok(()) } else { Err(pods) }
        });
        thread::park_timeout(Duration::from_millis(200));
        clients.iter().for_each(|client| drop(client.exec("touch /tmp/stop")));
        loads.into_iter().map(|load| load.join().unwrap()).collect()
    });
    for (url, count) in urls.iter().zip(&counts) {
        let (answered, failed) = count.trim().split_once(' ').unwrap();
        assert!(answered.parse::<u32>().unwrap() > 30 && failed == "0", "{url}: answered and failed: {count}");
    }
}
