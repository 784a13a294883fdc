//! The cluster's DNS as pods and the host see it, by the real dig: every kind of name, the user's settings, and that it goes on
//! answering when the server is away, across a restart of the agent too.

use std::fs::File;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Cluster, Kubectl, docker, free_port, run, uninstall, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: never}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: never}, ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.acme.test}
---
apiVersion: v1
kind: Service
metadata: {name: twice}
spec: {type: ExternalName, externalName: alias.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{name: any, port: 9}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {clusterIP: None, ports: [{name: any, port: 9}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: six-1, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
ports: [{name: any, port: 9}]
endpoints: [{addresses: ["fd00::1"], hostname: first}, {addresses: ["fd00::2"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec:
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: "3"}]}
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hostfirst}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, labels: {app: db}}
spec:
  hostname: db-0
  subdomain: db
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "tools:latest", imagePullPolicy: Never, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, labels: {app: db}}
spec:
  terminationGracePeriodSeconds: 0
  dnsConfig: {searches: [corp.example], options: [{name: ndots, value: "2"}, {name: edns0}]}
  containers: [{name: c, image: "busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: never, labels: {app: never}}
spec:
  terminationGracePeriodSeconds: 0
  enableServiceLinks: false
  containers:
  - {name: c, image: "busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"], readinessProbe: {exec: {command: ["false"]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "tools:latest", imagePullPolicy: Never, command: [sleep, "100000"]}]
"#;

/// A node in a process of its own, so that the server can go away without it.
struct Agent {
    folder: std::path::PathBuf,
    flags: Vec<String>,
    child: Option<Child>,
}

impl Agent {
    fn start(cluster: &Cluster) -> Self {
        let folder = cluster.folder.path().to_owned();
        let token = std::fs::read_to_string(folder.join("data/token")).unwrap();
        let flags = vec![
            "agent".to_owned(),
            "--config=/dev/null".to_owned(),
            format!("--join=https://127.0.0.1:{}", cluster.port),
            format!("--token={}", token.trim()),
            format!("--data-dir={}", folder.join("node").display()),
            format!("--node-name={}-dns", cluster.node),
            format!("--kubelet-port={}", free_port()),
        ];
        let mut agent = Self { folder, flags, child: None };
        agent.spawn();
        agent
    }

    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.join("agent.log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_orch"));
        command.args(&self.flags).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", [child.id().to_string()]);
            child.wait().unwrap();
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    fn owner(&self) -> String {
        std::fs::read_to_string(self.folder.join("node/agent/owner")).unwrap_or_else(|_| "nobody".to_owned()).trim().to_owned()
    }

    /// The id of a pod's container, found without the API.
    fn container(&self, pod: &str) -> String {
        let labels = [
            format!("label=io.orch.owner={}", self.owner()),
            format!("label=io.kubernetes.pod.name={pod}"),
            "label=io.kubernetes.container.name=c".to_owned(),
        ];
        docker(["ps", "-q"].into_iter().chain(labels.iter().flat_map(|label| ["--filter", label]))).trim().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log ---\n{}", self.log());
        }
        self.stop();
        uninstall(&self.folder.join("node"));
    }
}

/// dig in a container.
struct Dig(String);

impl Dig {
    fn ask(&self, question: &str) -> Result<String, String> {
        let output = Command::new("docker")
            .args(["exec", &self.0, "dig", "+time=2", "+tries=1"])
            .args(question.split(' '))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() { Ok(text) } else { Err(text) }
    }

    fn short(&self, question: &str) -> String {
        let mut lines: Vec<String> = self.ask(&format!("+short {question}")).unwrap().lines().map(str::to_owned).collect();
        lines.sort();
        lines.join(",")
    }

    /// Code and number of answers.
    fn code(&self, question: &str) -> String {
        let text = self.ask(question).unwrap();
        let word = |after: &str| {
            text.split(after).nth(1).and_then(|rest| rest.split([',', ';']).next()).unwrap_or("?").trim().to_owned()
        };
        format!("{} {}", word("status:"), word("ANSWER:"))
    }

    fn becomes(&self, question: &str, expected: &str) {
        wait_for(question, MINUTE, || {
            let got = self.ask(&format!("+short {question}"))?;
            if got == expected { Ok(()) } else { Err(got) }
        });
    }
}

/// Answers every question for an address with 192.0.2.LAST or 2001:db8::LAST until it is dropped with the process.
fn upstream(last: u8) -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0_u8; 600];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let end = 12 + buffer[12..length].iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
            let mut answer = buffer[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            let address = match answer[end - 3] {
                28 => [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[last]].concat(),
                _ => vec![192, 0, 2, last],
            };
            answer.extend([0xc0, 0x0c, 0, answer[end - 3], 0, 1, 0, 0, 0, 60, 0, u8::try_from(address.len()).unwrap()]);
            answer.extend(address);
            socket.send_to(&answer, client).unwrap();
        }
    });
    port
}

/// A headless Service with 200 endpoints.
fn many() -> String {
    let slice = |number: u32| {
        let endpoints = (0..100).map(|last| format!("{{addresses: [10.99.{number}.{last}]}}")).collect::<Vec<_>>().join(", ");
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: many-{number}, labels: {{kubernetes.io/service-name: \
             many}}}}\naddressType: IPv4\nports: [{{name: any, port: 9}}]\nendpoints: [{endpoints}]\n"
        )
    };
    slice(1) + &slice(2)
}

fn settings(kubectl: &Kubectl, hosts: &str, stubs: &str, upstreams: &str) {
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: orch-dns, namespace: kube-system}}\ndata:\n  hosts: \"{hosts}\"\n  \
         stubDomains: '{stubs}'\n  upstreamNameservers: '{upstreams}'\n"
    );
    kubectl.manifest(&["apply"], &map).unwrap();
}

#[test]
fn dns_answers_as_kubernetes_has_it_and_goes_on_without_a_server() {
    let mut cluster = Cluster::start_with(&["--disable-agent=true"]);
    let mut agent = Agent::start(&cluster);
    let kubectl = cluster.kubectl("1.33");
    kubectl.manifest(&["apply"], OBJECTS).unwrap();
    kubectl.manifest(&["apply"], &many()).unwrap();
    let pods = ["pod/db-0", "pod/db-1", "pod/host", "pod/plain", "pod/own", "pod/hostfirst"];
    wait_for("pods", MINUTE, || kubectl.try_run(["wait", "--for=condition=Ready", "--timeout=5s"].into_iter().chain(pods)));
    let ip = |pod: &str| kubectl.jsonpath(&["pod", pod], "{.status.podIP}");
    wait_for("an address", MINUTE, || Some(ip("never")).filter(|ip| !ip.is_empty()).ok_or_else(String::new));
    let dig = Dig(agent.container("db-0"));
    files_of_pods(&cluster, &kubectl);
    let upstreams = format!("[\"127.0.0.1:{}\"]", upstream(77));
    let stubs = format!("{{\"stub.test\": [\"127.0.0.1:{}\"]}}", upstream(78));
    settings(&kubectl, "10.9.9.9 printer.corp", &stubs, &upstreams);
    names(&cluster, &kubectl, &dig);
    protocol(&cluster, &dig);
    users_settings(&kubectl, &dig);
    settings(&kubectl, "10.9.9.7 printer.corp", &stubs, &upstreams);
    dig.becomes("printer.corp", "10.9.9.7");
    without_a_server(&mut cluster, &mut agent, &dig);
}

/// `resolv.conf` and the environment.
fn files_of_pods(cluster: &Cluster, kubectl: &Kubectl) {
    let dns = cluster.cluster_dns();
    let resolv_conf = |pod: &str| kubectl.run(["exec", pod, "--", "cat", "/etc/resolv.conf"]);
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let host_search =
        host.lines().find_map(|line| line.strip_prefix("search ")).map(|rest| format!(" {rest}")).unwrap_or_default();
    let search = format!("search default.svc.cluster.local svc.cluster.local cluster.local{host_search}");
    assert_eq!(resolv_conf("db-0"), format!("{search}\nnameserver {dns}\noptions ndots:5\n"));
    assert_eq!(resolv_conf("host"), resolv_conf("db-0"));
    let servers = |text: &str| text.lines().filter(|line| line.starts_with("nameserver ")).map(str::to_owned).collect::<Vec<_>>();
    for pod in ["plain", "hostfirst"] {
        let text = resolv_conf(pod);
        assert!(servers(&text) == servers(&host) && !text.contains("cluster.local"), "the host's own: {text}");
    }
    assert_eq!(resolv_conf("own"), "search a.example\nnameserver 192.0.2.53\noptions ndots:3\n");
    assert_eq!(resolv_conf("db-1"), format!("{search} corp.example\nnameserver {dns}\noptions ndots:2 edns0\n"));
    let variables = |pod: &str| kubectl.run(["exec", pod, "--", "env"]);
    let web = kubectl.jsonpath(&["service", "web"], "{.spec.clusterIP}");
    for line in [
        format!("WEB_SERVICE_HOST={web}"),
        "WEB_SERVICE_PORT=80".to_owned(),
        "WEB_SERVICE_PORT_DNS=53".to_owned(),
        format!("WEB_PORT_53_UDP=udp://{web}:53"),
    ] {
        assert!(variables("db-0").lines().any(|variable| variable == line), "{line}: {}", variables("db-0"));
        assert!(!variables("never").contains(&line), "no service links: {line}");
    }
    assert!(variables("never").contains("KUBERNETES_SERVICE_HOST="));
    assert!(kubectl.run(["cluster-info"]).contains("services/kube-dns:dns/proxy"));
}

fn names(cluster: &Cluster, kubectl: &Kubectl, dig: &Dig) {
    let dns = cluster.cluster_dns();
    let (web, ip) = (kubectl.jsonpath(&["service", "web"], "{.spec.clusterIP}"), |pod: &str| {
        kubectl.jsonpath(&["pod", pod], "{.status.podIP}")
    });
    let (db0, db1, never) = (ip("db-0"), ip("db-1"), ip("never"));
    let dashed = |ip: &str| ip.replace('.', "-");
    let mut both = [db0.as_str(), &db1];
    both.sort_unstable();
    let table = [
        ("+search web".to_owned(), web.clone()),
        ("+search web.default".to_owned(), web.clone()),
        ("+tcp web.default.svc.cluster.local".to_owned(), web.clone()),
        ("+search db".to_owned(), both.join(",")),
        ("+search db-0.db".to_owned(), db0.clone()),
        (format!("+search {}.db", dashed(&db1)), db1.clone()),
        ("+search never".to_owned(), never),
        ("+search alias".to_owned(), format!("{web},web.default.svc.cluster.local.")),
        ("+search outside".to_owned(), "192.0.2.77,www.acme.test.".to_owned()),
        (format!("{}.default.pod.cluster.local", dashed(&db0)), db0.clone()),
        ("-t SRV _http._tcp.web.default.svc.cluster.local".to_owned(), "0 100 80 web.default.svc.cluster.local.".to_owned()),
        ("-t SRV _sql._tcp.db.default.svc.cluster.local".to_owned(), {
            let mut all = [
                "0 50 5432 db-0.db.default.svc.cluster.local.".to_owned(),
                format!("0 50 5432 {}.db.default.svc.cluster.local.", dashed(&db1)),
            ];
            all.sort();
            all.join(",")
        }),
        (format!("-x {web}"), "web.default.svc.cluster.local.".to_owned()),
        (format!("-x {db0}"), "db-0.db.default.svc.cluster.local.".to_owned()),
        (format!("-x {db1}"), format!("{}.db.default.svc.cluster.local.", dashed(&db1))),
        ("-t TXT dns-version.cluster.local".to_owned(), "\"1.1.0\"".to_owned()),
        ("kube-dns.kube-system.svc.cluster.local".to_owned(), dns.clone()),
        ("+search twice".to_owned(), format!("{web},alias.default.svc.cluster.local.,web.default.svc.cluster.local.")),
        ("www.acme.test".to_owned(), "192.0.2.77".to_owned()),
        ("-t AAAA www.acme.test".to_owned(), "2001:db8::4d".to_owned()),
        ("a.stub.test".to_owned(), "192.0.2.78".to_owned()),
        ("-t AAAA six.default.svc.cluster.local".to_owned(), "fd00::1,fd00::2".to_owned()),
        ("-t AAAA first.six.default.svc.cluster.local".to_owned(), "fd00::1".to_owned()),
        ("-x fd00::1".to_owned(), "first.six.default.svc.cluster.local.".to_owned()),
        ("-t NS cluster.local".to_owned(), "ns.dns.cluster.local.".to_owned()),
        ("ns.dns.cluster.local".to_owned(), dns.clone()),
        ("printer.corp".to_owned(), "10.9.9.9".to_owned()),
    ];
    dig.becomes("printer.corp", "10.9.9.9");
    for (question, expected) in &table {
        assert_eq!(dig.short(question), *expected, "{question}");
    }
    for (question, expected) in [
        ("default.svc.cluster.local", "NOERROR 0"),
        ("svc.cluster.local", "NOERROR 0"),
        ("-t AAAA web.default.svc.cluster.local", "NOERROR 0"),
        ("six.default.svc.cluster.local", "NOERROR 0"),
        ("-t AAAA db.default.svc.cluster.local", "NOERROR 0"),
        ("-t SRV _no._tcp.web.default.svc.cluster.local", "NXDOMAIN 0"),
        ("-t ANY web.default.svc.cluster.local", "NOERROR 0"),
        ("-t TYPE65 web.default.svc.cluster.local", "NOERROR 0"),
        ("-t TYPE65 no.default.svc.cluster.local", "NXDOMAIN 0"),
        ("-t SOA cluster.local", "NOERROR 1"),
        ("no.default.svc.cluster.local", "NXDOMAIN 0"),
        ("no.cluster.local", "NXDOMAIN 0"),
        (&format!("-x {}", dns.replace(".0.10", ".0.99")), "NXDOMAIN 0"),
    ] {
        assert_eq!(dig.code(question), expected, "{question}");
    }
    assert!(dig.ask("WEB.Default.SVC.cluster.LOCAL").unwrap().contains("\nWEB.Default.SVC.cluster.LOCAL."), "as it was asked");
    let from_host =
        docker(["run", "--rm", "--network=host", "tools", "dig", "+short", &format!("@{dns}"), "web.default.svc.cluster.local"]);
    assert_eq!(from_host.trim(), web);
    let on_host = kubectl.run(["exec", "host", "--", "dig", "+search", "+short", "web"]);
    assert_eq!(on_host.trim(), web);
}

/// Sizes, truncation, what is not understood, and what says no.
fn protocol(cluster: &Cluster, dig: &Dig) {
    const MANY: &str = "many.default.svc.cluster.local";
    for (question, code, has_more) in [
        (format!("+noedns +ignore {MANY}"), "NOERROR 29", true),
        (format!("+bufsize=1232 +ignore {MANY}"), "NOERROR 73", true),
        (format!("+bufsize=4096 +ignore {MANY}"), "NOERROR 200", false),
        (format!("+tcp {MANY}"), "NOERROR 200", false),
        // Cut, and asked again over TCP by dig itself.
        (MANY.to_owned(), "NOERROR 200", false),
    ] {
        let text = dig.ask(&question).unwrap();
        let flags = text.lines().find(|line| line.starts_with(";; flags:")).unwrap();
        let cut = flags.split(';').nth(2).unwrap().split(' ').any(|flag| flag == "tc");
        assert_eq!((dig.code(&question).as_str(), cut), (code, has_more), "{question}: {text}");
    }
    for (question, expected) in [
        ("+edns=1 +noednsnegotiation web.default.svc.cluster.local", "BADVERS 0"),
        ("-c CH -t TXT version.bind", "REFUSED 0"),
        ("+opcode=NOTIFY web.default.svc.cluster.local", "NOTIMP 0"),
        ("+header-only", "FORMERR 0"),
    ] {
        assert_eq!(dig.code(question), expected, "{question}");
    }
    for name in ["no.default.svc.cluster.local", "default.svc.cluster.local"] {
        let text = dig.ask(name).unwrap();
        let denies = text.contains("cluster.local.\t\t5\tIN\tSOA\tns.dns.cluster.local. hostmaster.cluster.local. ");
        assert!(denies && text.contains(" aa "), "for how long, and with authority: {text}");
    }
    // What is no question at all leaves the server as it was.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let server = (cluster.cluster_dns(), 53);
    for packet in [
        &[0_u8; 0][..],
        &[0xff; 3],
        &[0xff; 12],
        &[0; 600],
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",
    ] {
        socket.send_to(packet, (server.0.as_str(), server.1)).unwrap();
    }
    socket
        .send_to(b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01", (server.0.as_str(), server.1))
        .unwrap();
    let mut answer = [0; 600];
    let codes: Vec<u8> = (0..3).map(|_| socket.recv(&mut answer).map(|_| answer[3] & 15).unwrap()).collect();
    // Twice malformed, and the root's address, which is asked of the upstream.
    assert_eq!(codes, [1, 1, 0], "malformed, malformed, and answered");
}

/// What does not parse changes nothing and is said in an event.
fn users_settings(kubectl: &Kubectl, dig: &Dig) {
    settings(kubectl, "10.9.9.8 printer.corp", "{\"stub.test\": []}", "9.9.9.9");
    dig.becomes("printer.corp", "10.9.9.8");
    assert_eq!(dig.short("other.acme.test"), "192.0.2.77", "the last good upstream");
    assert_eq!(dig.short("b.stub.test"), "192.0.2.78", "and stub");
    wait_for("the event", MINUTE, || {
        let events = kubectl.run(["-n", "kube-system", "get", "events", "--field-selector", "reason=InvalidConfiguration"]);
        if events.contains("upstreamNameservers: ") && events.contains("stubDomains: \"stub.test\" has no server") {
            Ok(())
        } else {
            Err(events)
        }
    });
}

fn without_a_server(cluster: &mut Cluster, agent: &mut Agent, dig: &Dig) {
    const WEB: &str = "web.default.svc.cluster.local";
    let kubectl = cluster.kubectl("1.33");
    let web = dig.short(WEB);
    // What changes while the agent is away is corrected by its first list, whatever its snapshot says.
    agent.stop();
    kubectl.run(["delete", "service", "alias"]);
    kubectl.run(["create", "service", "clusterip", "late", "--clusterip=None"]);
    kubectl.run(["create", "service", "externalname", "later", "--external-name=web.default.svc.cluster.local"]);
    agent.spawn();
    dig.becomes("later.default.svc.cluster.local", &format!("{WEB}.\n{web}"));
    wait_for("the deleted name to go", MINUTE, || {
        let code = dig.code("alias.default.svc.cluster.local");
        if code == "NXDOMAIN 0" { Ok(()) } else { Err(code) }
    });
    cluster.kill();
    assert_eq!(dig.short(WEB), web, "without a server");
    agent.stop();
    assert!(dig.ask(WEB).is_err(), "nobody answers");
    agent.spawn();
    dig.becomes(WEB, &web);
    assert_eq!(dig.code("alias.default.svc.cluster.local"), "NXDOMAIN 0");
    assert_eq!(dig.short("printer.corp"), "10.9.9.7", "the user's settings too");
    assert_eq!(dig.short("other.acme.test"), "192.0.2.77", "and the upstreams");
}
