//! Network policies between real pods on two hosts: what is allowed answers, what is not does not arrive; packets are counted where
//! they would arrive.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::cluster::{MINUTE, NetCluster};
use crate::support::{Kubectl, wait_for};

/// A policy or a label takes effect within this time on this machine, busy as it may be.
const EFFECT: Duration = Duration::from_secs(20);
/// Packets that are sent when packets are counted.
const PACKETS: usize = 3;

/// A pod that serves HTTP on ports 80 (`http`), 81 (`alt`) and 82.
struct Pod<'a> {
    cluster: &'a NetCluster,
    container: String,
    host: usize,
    ip: Ipv4Addr,
}

fn manifest(namespace: &str, name: &str, node: &str, command: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}, spec: {{nodeName: {node}, \
         terminationGracePeriodSeconds: 0, containers: [{{name: main, image: tools, imagePullPolicy: Never, command: [sh, -c, '{command}'], \
         ports: [{{name: http, containerPort: 80}}, {{name: alt, containerPort: 81}}]}}]}}}}"
    )
}

impl<'a> Pod<'a> {
    fn start(cluster: &'a NetCluster, namespace: &str, name: &str, host: usize) -> Self {
        let kubectl = cluster.kubectl();
        let serve = "mkdir -p /tmp/w; echo here > /tmp/w/index.html; for p in 80 81 82; do httpd -p $p -h /tmp/w; done; exec sleep infinity";
        let manifest = manifest(namespace, name, &cluster.host(host).name, serve);
        wait_for("a pod to be created", MINUTE, || kubectl.manifest(&["apply"], &manifest));
        kubectl.run(["wait", "-n", namespace, "--for=condition=Ready", &format!("pod/{name}"), "--timeout=90s"]);
        let ip = kubectl.jsonpath(&["pod", "-n", namespace, name], "{.status.podIP}").parse().unwrap();
        let label = format!("label=io.kubernetes.pod.name={name}");
        let main = "label=io.kubernetes.container.name=main";
        let container = cluster.host(host).docker(["ps", "-q", "--filter", &label, "--filter", main]).trim().to_owned();
        Self { cluster, container, host, ip }
    }

    fn run(&self, script: &str) -> Result<String, String> {
        self.cluster.host(self.host).try_exec(&format!("docker exec {} sh -c '{script}'", self.container))
    }

    fn start_process(&self, script: &str) {
        self.cluster.host(self.host).docker(["exec", "-d", &self.container, "sh", "-c", script]);
    }

    /// Whether a new connection to a port is answered.
    fn reaches(&self, ip: Ipv4Addr, port: u16) -> bool {
        self.run(&format!("curl -s --max-time 1 http://{ip}:{port}/")).is_ok_and(|page| page == "here\n")
    }

    /// Packets that have come in.
    fn received(&self) -> usize {
        let words = self.run("grep eth0 /proc/net/dev").unwrap();
        words.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// How many of some packets to a UDP port arrive, each from another port.
    fn udp_arrives(&self, to: &Pod<'_>, port: u16) -> usize {
        let before = to.received();
        let ip = to.ip;
        self.run(&format!("for i in $(seq {PACKETS}); do dig +tries=1 +time=1 @{ip} -p {port} x >/dev/null & done; wait"))
            .unwrap();
        to.received() - before
    }
}

fn policy(kubectl: &Kubectl, name: &str, spec: &str) {
    let manifest = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: default}}, spec: {{{spec}}}}}"
    );
    kubectl.manifest(&["apply"], &manifest).unwrap();
}

/// Waits until every probe gives what is expected, twice, and says how long that took. A probe: who, whom, port, whether it passes.
fn becomes(what: &str, probes: &[(&Pod<'_>, &Pod<'_>, u16, bool)]) {
    let started = Instant::now();
    let all = || -> Result<(), String> {
        let seen: Vec<bool> = std::thread::scope(|scope| {
            let running: Vec<_> = probes.iter().map(|(from, to, port, _)| scope.spawn(|| from.reaches(to.ip, *port))).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let expected: Vec<bool> = probes.iter().map(|(.., passes)| *passes).collect();
        if seen == expected { Ok(()) } else { Err(format!("{seen:?} instead of {expected:?}")) }
    };
    wait_for(what, EFFECT, all);
    println!("{what}: {:?}", started.elapsed());
    all().unwrap_or_else(|seen| panic!("{what}, and then not: {seen}"));
}

#[test]
fn policies_hold_within_a_host_and_across() {
    let mut cluster = NetCluster::start(&[0, 0]);
    ingress_and_egress(&cluster);
    names_and_services(&cluster);
    first_packets_are_filtered(&cluster);
    nobody_passes_for_another(&cluster);
    rules_outlive_the_agent(&mut cluster);
}

fn ingress_and_egress(cluster: &NetCluster) {
    let kubectl = cluster.kubectl();
    kubectl.run(["create", "namespace", "other"]);
    kubectl.run(["label", "namespace", "other", "team=ops"]);
    let [web, near, db, other] = [("default", "web", 1), ("default", "near", 1), ("default", "db", 2), ("other", "other", 2)]
        .map(|(namespace, name, host)| Pod::start(cluster, namespace, name, host));
    becomes(
        "without a policy all pass",
        &[(&web, &db, 80, true), (&near, &web, 80, true), (&other, &db, 81, true), (&db, &other, 82, true)],
    );
    assert_eq!((web.udp_arrives(&db, 90), near.udp_arrives(&web, 90)), (PACKETS, PACKETS));

    // A connection that lives on.
    db.start_process("tail -f /dev/null | nc -l -p 7000 > /tmp/ticks");
    wait_for("nc to listen", EFFECT, || db.run("grep :1B58 /proc/net/tcp /proc/net/tcp6"));
    web.start_process(&format!("while :; do echo tick; sleep 0.1; done | nc {} 7000", db.ip));
    let ticks = || db.run("wc -l < /tmp/ticks").unwrap().trim().parse::<u32>().unwrap();
    wait_for("the connection to be used", EFFECT, || if ticks() > 2 { Ok(()) } else { Err("not yet".to_owned()) });

    policy(&kubectl, "deny", "podSelector: {}");
    becomes(
        "default deny of ingress",
        &[(&web, &db, 80, false), (&near, &web, 80, false), (&other, &db, 80, false), (&db, &other, 80, true)],
    );
    let before = ticks();
    wait_for("the established connection to go on", EFFECT, || {
        if ticks() > before + 2 { Ok(()) } else { Err("stalled".to_owned()) }
    });
    db.run("killall nc").unwrap();
    assert_eq!((web.udp_arrives(&db, 90), near.udp_arrives(&web, 90), web.udp_arrives(&other, 90)), (0, 0, PACKETS));
    let node_reaches =
        |host: usize, pod: &Pod<'_>| cluster.host(host).try_exec(&format!("curl -s --max-time 1 http://{}/", pod.ip)).is_ok();
    assert!(node_reaches(1, &web) && node_reaches(2, &db), "a node reaches its own pods");
    assert!(!node_reaches(2, &web), "another node is an address like any other");

    policy(
        &kubectl,
        "allow",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]",
    );
    becomes(
        "a pod selector and a named port",
        &[(&web, &db, 80, true), (&web, &db, 81, false), (&near, &db, 80, false), (&other, &db, 80, false)],
    );
    kubectl.run(["label", "pod", "near", "app=web", "--overwrite"]);
    becomes("a label that a policy selects", &[(&near, &db, 80, true), (&near, &db, 81, false)]);
    kubectl.run(["label", "pod", "near", "app=near", "--overwrite"]);
    becomes("the label is gone", &[(&near, &db, 80, false), (&web, &db, 80, true)]);

    policy(
        &kubectl,
        "allow",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}}], ports: [{port: 81, endPort: 82}]}]",
    );
    becomes(
        "a namespace selector and a range of ports",
        &[(&other, &db, 80, false), (&other, &db, 81, true), (&other, &db, 82, true), (&web, &db, 81, false)],
    );
    kubectl.run(["label", "namespace", "other", "team=dev", "--overwrite"]);
    becomes("a namespace's label", &[(&other, &db, 81, false)]);

    let block = format!("{{ipBlock: {{cidr: {}/8, except: [{}/32]}}}}", web.ip, near.ip);
    policy(
        &kubectl,
        "allow",
        &format!(
            "podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: [{block}], ports: [{{port: 80}}, {{port: 90, protocol: UDP}}]}}]"
        ),
    );
    becomes(
        "a block without its exception",
        &[(&web, &db, 80, true), (&near, &db, 80, false), (&other, &db, 80, true), (&other, &db, 81, false)],
    );
    assert_eq!((web.udp_arrives(&db, 90), near.udp_arrives(&db, 90), web.udp_arrives(&db, 91)), (PACKETS, 0, 0));

    kubectl.run(["delete", "networkpolicy", "--all"]);
    becomes("policies gone, all open", &[(&near, &db, 80, true), (&near, &web, 81, true), (&other, &db, 82, true)]);

    policy(&kubectl, "egress", "podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]");
    becomes(
        "default deny of egress",
        &[(&web, &db, 80, false), (&web, &near, 80, false), (&near, &web, 80, true), (&near, &db, 80, true)],
    );
    assert_eq!((web.udp_arrives(&near, 90), web.udp_arrives(&db, 90), near.udp_arrives(&web, 90)), (0, 0, PACKETS));
    let node = cluster.host(1).ip;
    assert!(web.run(&format!("ping -c 1 -W 1 {node}")).is_err(), "the own node is no exception");
    policy(
        &kubectl,
        "egress",
        &format!(
            "podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{matchLabels: {{app: db}}}}}}], ports: [{{port: alt}}]}}, {{to: [{{ipBlock: {{cidr: {node}/32}}}}]}}]"
        ),
    );
    becomes("egress to a named port", &[(&web, &db, 81, true), (&web, &db, 80, false), (&web, &near, 81, false)]);
    assert!(web.run(&format!("ping -c 1 -W 1 {node}")).is_ok());
    kubectl.run(["delete", "networkpolicy", "--all"]);
    becomes("egress open again", &[(&web, &near, 82, true)]);
}

/// DNS and Services are judged by what answers.
fn names_and_services(cluster: &NetCluster) {
    let kubectl = cluster.kubectl();
    let [asker, _answerer] = [("asker", 1), ("answerer", 2)].map(|(name, host)| Pod::start(cluster, "default", name, host));
    kubectl.run(["expose", "pod", "answerer", "--port=8080", "--target-port=81"]);
    let ip: Ipv4Addr = kubectl.jsonpath(&["service", "answerer"], "{.spec.clusterIP}").parse().unwrap();
    let resolves = || {
        asker.run("dig +short +tries=1 +time=1 kubernetes.default.svc.cluster.local").is_ok_and(|said| said.contains(".0.1\n"))
    };
    let is = |what: &str, names: bool, service: bool| {
        wait_for(what, EFFECT, || {
            let seen = (resolves(), asker.reaches(ip, 8080));
            if seen == (names, service) { Ok(()) } else { Err(format!("names, Service: {seen:?}")) }
        });
    };
    let egress = |rule: &str| {
        policy(
            &kubectl,
            "egress",
            &format!("podSelector: {{matchLabels: {{app: asker}}}}, policyTypes: [Egress], egress: [{rule}]"),
        )
    };
    is("names and Services without a policy", true, true);
    egress("");
    is("neither", false, false);
    egress(
        "{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]}",
    );
    is("the rule that everybody writes for DNS", true, false);
    egress("{to: [{podSelector: {matchLabels: {app: answerer}}}], ports: [{port: 8080}]}");
    is("the port of the Service", false, false);
    egress("{to: [{podSelector: {matchLabels: {app: answerer}}}], ports: [{port: 81}]}");
    is("the port of the pod", false, true);
    egress(&format!("{{to: [{{ipBlock: {{cidr: {ip}/32}}}}]}}"));
    is("the address of the Service", false, false);
    kubectl.run(["delete", "networkpolicy", "--all"]);
    is("names and Services again", true, true);
    kubectl.run(["delete", "service/answerer", "pod/asker", "pod/answerer"]);
}

/// Pods that send from their first moment on: nothing arrives before their policy.
fn first_packets_are_filtered(cluster: &NetCluster) {
    let kubectl = cluster.kubectl();
    let target = Pod::start(cluster, "default", "target", 2);
    policy(
        &kubectl,
        "quiet",
        "podSelector: {matchExpressions: [{key: app, operator: In, values: [quiet-0, quiet-1, quiet-2]}]}, policyTypes: [Egress]",
    );
    let send = format!(
        "for i in $(seq 5); do dig +tries=1 +time=1 @{} -p 90 x; nc -w 1 {} 80; done; exec sleep infinity",
        target.ip, target.ip
    );
    let arrived = |name: &str| {
        let before = target.received();
        let node = &cluster.host(1 + name.len() % 2).name;
        kubectl.manifest(&["apply"], &manifest("default", name, node, &send)).unwrap();
        kubectl.run(["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=90s"]);
        // Its sending ends when it only sleeps.
        let label = format!("label=io.kubernetes.pod.name={name}");
        let host = cluster.host(1 + name.len() % 2);
        let main = "label=io.kubernetes.container.name=main";
        let container = host.docker(["ps", "-q", "--filter", &label, "--filter", main]).trim().to_owned();
        wait_for("the pod to have sent", MINUTE, || {
            let processes = host.docker(["top", &container]);
            if processes.contains("sleep infinity") && !processes.contains("seq") { Ok(()) } else { Err(processes) }
        });
        target.received() - before
    };
    let loud = arrived("loud-0");
    assert!(loud >= 10, "what an unfiltered pod sends arrives: {loud}");
    let quiet: Vec<usize> = ["quiet-0", "quiet-1", "quiet-2"].map(|name| arrived(name)).to_vec();
    assert_eq!(quiet, [0, 0, 0], "of what arrived from an unfiltered one: {loud}");
    kubectl.run(["delete", "networkpolicy", "--all"]);
    kubectl.run(["delete", "pod", "loud-0", "quiet-0", "quiet-1", "quiet-2"]);
}

/// A pod that may change its network sends with addresses that are not its own: nothing of that leaves its interface.
fn nobody_passes_for_another(cluster: &NetCluster) {
    let kubectl = cluster.kubectl();
    let [liar, honest] = ["liar", "honest"].map(|name| Pod::start(cluster, "default", name, 1));
    let victims = [("here", 1), ("there", 2)].map(|(name, host)| Pod::start(cluster, "default", name, host));
    policy(&kubectl, "gag", "podSelector: {matchLabels: {app: liar}}, policyTypes: [Egress]");
    becomes("the gag", &[(&liar, &victims[0], 80, false), (&liar, &victims[1], 80, false), (&honest, &victims[1], 80, true)]);
    let pid = cluster.host(1).docker(["inspect", "-f", "{{.State.Pid}}", &liar.container]);
    let stranger = Ipv4Addr::new(10, 9, 9, 9);
    let false_ones = [honest.ip, victims[1].ip, cluster.host(1).ip, stranger];
    for ip in false_ones {
        cluster.host(1).exec(&format!("nsenter -t {} -n ip addr add {ip}/32 dev lo", pid.trim()));
    }
    // To one that has the address itself it is local and never leaves.
    let sends = |source: Ipv4Addr, to: &Pod<'_>| {
        let before = to.received();
        let ip = to.ip;
        liar.run(&format!(
            "for i in $(seq {PACKETS}); do dig +tries=1 +time=1 -b {source} @{ip} -p 90 x >/dev/null & done; wait"
        ))
        .unwrap();
        to.received() - before
    };
    let seen =
        || false_ones.into_iter().filter(|ip| *ip != victims[1].ip).map(|ip| (sends(ip, &victims[0]), sends(ip, &victims[1])));
    assert_eq!(sends(victims[1].ip, &victims[0]), 0, "as a pod of another node");
    cluster.host(1).exec(&format!("nsenter -t {} -n ip addr del {}/32 dev lo", pid.trim(), victims[1].ip));
    assert_eq!(seen().collect::<Vec<_>>(), [(0, 0); 3], "gagged, as another");
    kubectl.run(["delete", "networkpolicy", "gag"]);
    becomes("the gag is gone", &[(&liar, &victims[0], 80, true), (&liar, &victims[1], 80, true)]);
    assert_eq!(seen().collect::<Vec<_>>(), [(0, 0); 3], "as another, without any policy");
    assert_eq!((sends(liar.ip, &victims[0]), sends(liar.ip, &victims[1])), (PACKETS, PACKETS), "as itself");
    let rule = cluster.host(1).exec("nft list ruleset | grep 'pods with another'");
    assert!(rule.contains("drop") && !rule.contains("packets 0 "), "{rule}");
    // VXLAN would carry any address: not to nodes, but to pods, who may have a network of their own.
    for ip in [cluster.host(1).ip, cluster.host(2).ip] {
        honest.run(&format!("dig +tries=1 +time=1 @{ip} -p 8472 x >/dev/null; true")).unwrap();
    }
    assert_eq!(honest.udp_arrives(&victims[1], 8472), PACKETS);
    let rules = cluster.host(1).exec("nft list ruleset | grep 'VXLAN of a pod to'");
    let dropped = rules.lines().filter(|line| !line.contains("packets 0 ")).count();
    assert_eq!(dropped, 2, "to this node and to another: {rules}");
    kubectl.run(["delete", "pod", "liar", "honest", "here", "there"]);
}

/// The agent of a node dies and comes back, the API too: what was in force stays, and what came meanwhile is taken up.
fn rules_outlive_the_agent(cluster: &mut NetCluster) {
    policy(
        &cluster.kubectl(),
        "outlive",
        "podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]",
    );
    let address = |name: &str| cluster.kubectl().jsonpath(&["pod", name], "{.status.podIP}");
    let db = address("db");
    let probe = |cluster: &NetCluster, name: &str| {
        let host = cluster.host(1);
        let label = format!("label=io.kubernetes.pod.name={name}");
        let main = "label=io.kubernetes.container.name=main";
        let container = host.docker(["ps", "-q", "--filter", &label, "--filter", main]).trim().to_owned();
        host.try_exec(&format!("docker exec {container} curl -s --max-time 1 http://{db}/")).is_ok()
    };
    let holds = |cluster: &NetCluster, what: &str, web: bool, near: bool| {
        wait_for(what, EFFECT, || {
            let seen = (probe(cluster, "web"), probe(cluster, "near"));
            if seen == (web, near) { Ok(()) } else { Err(format!("web, near: {seen:?}")) }
        });
    };
    holds(cluster, "the policy to be in force", false, true);
    cluster.kill(2);
    assert!(!probe(cluster, "web") && probe(cluster, "near"), "without an agent");
    cluster.kubectl().run(["label", "pod", "web", "app=near", "--overwrite"]);
    cluster.restart(2);
    holds(cluster, "the new agent to take up the label", true, true);
    cluster.kubectl().run(["label", "pod", "web", "app=web", "--overwrite"]);
    holds(cluster, "the label to be gone", false, true);
    // Agent and API both away: the agent comes back alone, with what it noted.
    let noted = cluster.host(2).folder.join("orch/agent/network/policy.json");
    wait_for("the label to be noted", EFFECT, || {
        let known: serde_json::Value = serde_json::from_slice(&std::fs::read(&noted).unwrap()).unwrap();
        let pods = known["pods"].as_array().unwrap();
        let web = pods.iter().find(|pod| pod["metadata"]["name"] == "web").unwrap();
        if web["metadata"]["labels"]["app"] == "web" { Ok(()) } else { Err(web.to_string()) }
    });
    cluster.kill(1);
    cluster.kill(2);
    cluster.restart(2);
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        assert!(!probe(cluster, "web") && probe(cluster, "near"), "without the API");
    }
    let table = cluster.host(2).exec("nft list ruleset | grep -A 6 'map ingress'");
    assert!(table.contains("jump ingress-"), "{table}");
    // Somebody flushes the rules.
    cluster.host(2).exec("nft list tables | grep policy | while read a b c; do nft delete table $b $c; done");
    holds(cluster, "the table to come back, from what was last known", false, true);
    cluster.restart(1);
    cluster.wait_ready();
    cluster.kubectl().run(["delete", "networkpolicy", "--all"]);
    holds(cluster, "the policy to be gone", true, true);
    wait_for("the table to be gone", EFFECT, || {
        let tables = cluster.host(2).exec("nft list tables");
        if tables.contains("-policy") { Err(tables) } else { Ok(()) }
    });
}
