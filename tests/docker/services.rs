//! Services from the user's side: real kubectl, real pods; endpoints, slices, types, load balancers, ranges, and what heals.

use std::time::{Duration, Instant};

use crate::support::{Cluster, Kubectl, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

fn apply(kubectl: &Kubectl, manifest: &str) -> String {
    kubectl.manifest(&["apply"], manifest).unwrap_or_else(|error| panic!("{manifest}: {error}"))
}

fn get(kubectl: &Kubectl, what: &str, path: &str) -> String {
    let words: Vec<&str> = what.split(' ').collect();
    kubectl.try_run(["get"].into_iter().chain(words).chain(["-o", &format!("jsonpath={path}")])).unwrap_or_else(|error| error)
}

fn wait_get(kubectl: &Kubectl, what: &str, path: &str, expected: &str) {
    wait_for(&format!("{path} of {what} to be {expected:?}"), MINUTE, || {
        let found = get(kubectl, what, path);
        if found == expected { Ok(()) } else { Err(found) }
    });
}

#[test]
fn endpoints_and_slices_follow_pods() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    kubectl.run(["create", "deployment", "web", "--image=nginx:1.14", "--replicas=2"]);
    kubectl.run(["expose", "deployment", "web", "--port=80"]);
    kubectl.run(["rollout", "status", "deploy/web", "--timeout=120s"]);
    let slice = "endpointslices -l kubernetes.io/service-name=web";
    wait_get(&kubectl, slice, "{.items[*].endpoints[*].conditions}", &{
        let ready = r#"{"ready":true,"serving":true,"terminating":false}"#;
        format!("{ready} {ready}")
    });
    let mut ips: Vec<String> =
        get(&kubectl, "pods -l app=web", "{.items[*].status.podIP}").split(' ').map(str::to_owned).collect();
    ips.sort();
    assert_eq!(get(&kubectl, "endpoints web", "{.subsets[0].addresses[*].ip}"), ips.join(" "));
    assert_eq!(get(&kubectl, slice, "{.items[0].endpoints[0].nodeName}"), cluster.node);
    assert_eq!(
        get(&kubectl, "endpoints web", "{.metadata.labels.endpoints\\.kubernetes\\.io/managed-by}"),
        "endpoint-controller"
    );
    kubectl.run(["scale", "deploy/web", "--replicas=0"]);
    wait_get(&kubectl, slice, "{.items[*].endpoints}", "[]");
    assert_eq!(get(&kubectl, slice, "{.items[*].kind}"), "EndpointSlice", "the placeholder stays");
    kubectl.run(["delete", "service", "web"]);
    wait_get(&kubectl, slice, "{.items}", "[]");
    assert!(kubectl.fails(["get", "endpoints", "web"]).contains("NotFound"));
}

#[test]
fn endpoints_by_hand_are_mirrored() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.33");
    let endpoints = |port: u16| {
        format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: db}}\nsubsets:\n- addresses: [{{ip: 192.0.2.7}}]\n  ports: [{{port: {port}, name: pg}}]\n"
        )
    };
    // The endpoints may come before the Service.
    apply(&kubectl, &endpoints(5432));
    apply(&kubectl, "apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec:\n  ports: [{port: 5432, name: pg}]\n");
    let slice = "endpointslices -l kubernetes.io/service-name=db";
    let path = "{range .items[*]}{.endpoints[*].addresses[0]}:{.ports[0].port} {.metadata.labels.endpointslice\\.kubernetes\\.io/managed-by}{end}";
    wait_get(&kubectl, slice, path, "192.0.2.7:5432 endpointslicemirroring-controller.k8s.io");
    apply(&kubectl, &endpoints(6432));
    wait_get(&kubectl, slice, path, "192.0.2.7:6432 endpointslicemirroring-controller.k8s.io");
    kubectl.run(["label", "endpoints", "db", "endpointslice.kubernetes.io/skip-mirror=true"]);
    wait_get(&kubectl, slice, "{.items}", "[]");
    kubectl.run(["label", "endpoints", "db", "endpointslice.kubernetes.io/skip-mirror-"]);
    wait_get(&kubectl, slice, path, "192.0.2.7:6432 endpointslicemirroring-controller.k8s.io");
    // With a selector the controller takes over; without it, what it made goes.
    kubectl.run(["patch", "service", "db", "-p", r#"{"spec":{"selector":{"app":"db"}}}"#]);
    wait_get(
        &kubectl,
        slice,
        "{.items[*].metadata.labels.endpointslice\\.kubernetes\\.io/managed-by}",
        "endpointslice-controller.k8s.io",
    );
    wait_get(&kubectl, "endpoints db", "{.subsets}", "");
    kubectl.run(["patch", "service", "db", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/selector"}]"#]);
    wait_get(&kubectl, slice, "{.items}", "[]");
    kubectl.run(["delete", "service", "db"]);
}

#[test]
fn types_change_both_ways() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    for version in crate::support::KUBECTLS {
        let kubectl = cluster.kubectl(version);
        apply(
            &kubectl,
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80}]\n",
        );
        let set = |patch: &str| kubectl.run(["patch", "service", "web", "--type=merge", "-p", patch]);
        let address = get(&kubectl, "service web", "{.spec.clusterIP}");
        assert!(get(&kubectl, "ipaddress", "{.items[*].metadata.name}").contains(&address));
        set(r#"{"spec":{"type":"NodePort"}}"#);
        let port = get(&kubectl, "service web", "{.spec.ports[0].nodePort}");
        assert!((30_000..32_768).contains(&port.parse().unwrap()), "{port}");
        let taken = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: other}}\nspec:\n  type: NodePort\n  ports: [{{port: 80, nodePort: {port}}}]\n"
        );
        let error = kubectl.manifest(&["create"], &taken).unwrap_err();
        let expected = format!("spec.ports[0].nodePort: Invalid value: {port}: provided port is already allocated");
        assert!(error.contains(&expected), "{error}");
        set(r#"{"spec":{"type":"LoadBalancer"}}"#);
        assert_eq!(get(&kubectl, "service web", "{.spec.ports[0].nodePort} {.spec.clusterIP}"), format!("{port} {address}"));
        set(r#"{"spec":{"type":"ClusterIP"}}"#);
        assert_eq!(get(&kubectl, "service web", "{.spec.ports[0].nodePort}"), "");
        kubectl.manifest(&["create"], &taken).expect("the node port is free again");
        kubectl.run(["delete", "service", "other"]);
        set(r#"{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null}}"#);
        assert!(!get(&kubectl, "ipaddress", "{.items[*].metadata.name}").split(' ').any(|ip| ip == address), "it is given back");
        set(r#"{"spec":{"type":"ClusterIP","externalName":null}}"#);
        assert!(!get(&kubectl, "service web", "{.spec.clusterIP}").is_empty());
        let error = kubectl.fails([
            "patch",
            "service",
            "web",
            "--type=merge",
            "-p",
            r#"{"spec":{"clusterIP":"None","clusterIPs":["None"]}}"#,
        ]);
        assert!(error.contains("may not change once set"), "{error}");
        let before = get(&kubectl, "ipaddress", "{.items[*].metadata.name}");
        kubectl.run(["create", "service", "nodeport", "dry", "--tcp=80", "--dry-run=server"]);
        assert_eq!(get(&kubectl, "ipaddress", "{.items[*].metadata.name}"), before, "a dry run allocates nothing");
        kubectl.run(["delete", "service", "web"]);
    }
}

#[test]
fn node_ports_and_families_are_what_the_cluster_has() {
    let cluster = Cluster::start_with(&["--disable-agent", "--service-node-port-range=31000+1"]);
    let kubectl = cluster.kubectl("1.33");
    let make_at = |node_port: u16, spec: &str| {
        let port = format!("{{port: 80, nodePort: {node_port}}}");
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{generateName: web-}}\nspec: {{ports: [{port}], selector: {{a: b}}, {spec}}}\n"
        );
        kubectl
            .manifest(&["create", "-o=jsonpath={.spec.ports[0].nodePort} {.spec.ipFamilyPolicy} {.spec.ipFamilies}"], &manifest)
    };
    let make = |spec: &str| make_at(0, spec);
    let mut ports: Vec<String> = (0..2).map(|_| make("type: NodePort").unwrap()).collect();
    ports.sort();
    assert_eq!(ports, ["31000 SingleStack [\"IPv4\"]", "31001 SingleStack [\"IPv4\"]"]);
    assert!(make("type: NodePort").unwrap_err().contains("failed to allocate a nodePort: range is full"));
    let outside = make_at(30_000, "type: NodePort").unwrap_err();
    let words = "spec.ports[0].nodePort: Invalid value: 30000: provided port is not in the valid range. The range of valid ports is 31000-31001";
    assert!(outside.contains(words), "{outside}");
    assert_eq!(make("ipFamilyPolicy: PreferDualStack").unwrap(), " PreferDualStack [\"IPv4\"]");
    for (spec, words) in [
        ("ipFamilyPolicy: RequireDualStack", "\"RequireDualStack\": this cluster is not configured for dual-stack services"),
        ("ipFamilies: [IPv6]", "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"),
    ] {
        let error = make(spec).unwrap_err();
        assert!(error.contains(words), "{spec}: {error}");
    }
    let wrong = std::process::Command::new(env!("CARGO_BIN_EXE_orch")).args(["server", "--service-node-port-range=9-8"]).output();
    let wrong = crate::support::text(&wrong.unwrap().stderr);
    assert!(wrong.contains("end port cannot be less than start port: 9-8"), "{wrong}");
}

#[test]
fn a_load_balancer_gets_the_nodes_addresses() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let service = |name: &str, port: u16, extra: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  selector: {{app: web}}\n  ports: [{{port: {port}}}]\n{extra}"
        )
    };
    let ip = get(&kubectl, &format!("node {}", cluster.node), "{.status.addresses[?(@.type==\"InternalIP\")].address}");
    apply(&kubectl, &service("web", 8080, ""));
    wait_get(&kubectl, "service web", "{.status.loadBalancer.ingress}", &format!(r#"[{{"ip":"{ip}","ipMode":"VIP"}}]"#));
    let table = kubectl.run(["get", "service", "web"]);
    assert!(table.lines().nth(1).is_some_and(|line| line.contains(&ip)), "{table}");
    wait_for("the events", MINUTE, || {
        let events = kubectl.run(["get", "events", "--field-selector=involvedObject.name=web"]);
        let all = ["EnsuringLoadBalancer", "EnsuredLoadBalancer"].iter().all(|reason| events.contains(reason));
        if all { Ok(()) } else { Err(events) }
    });
    // The second on the same port waits, and says for whom.
    apply(&kubectl, &service("second", 8080, ""));
    wait_for("the event of the clash", MINUTE, || {
        let events = kubectl.run(["get", "events", "--field-selector=involvedObject.name=second"]);
        if events.contains("port 8080/TCP") && events.contains("in use by service default/web") { Ok(()) } else { Err(events) }
    });
    assert_eq!(get(&kubectl, "service second", "{.status.loadBalancer.ingress}"), "");
    kubectl.run(["delete", "service", "web"]);
    wait_get(&kubectl, "service second", "{.status.loadBalancer.ingress[0].ip}", &ip);
    // Local: only nodes with a ready pod.
    apply(&kubectl, &service("local", 8081, "  externalTrafficPolicy: Local\n"));
    assert!(!get(&kubectl, "service local", "{.spec.healthCheckNodePort}").is_empty());
    apply(&kubectl, &service("other", 8082, "  loadBalancerClass: example.com/other\n"));
    kubectl.run(["create", "deployment", "web", "--image=nginx:1.14"]);
    wait_get(&kubectl, "service local", "{.status.loadBalancer.ingress[0].ip}", &ip);
    assert_eq!(get(&kubectl, "service other", "{.status.loadBalancer.ingress}"), "", "another class is another's");
    kubectl.run(["label", "node", &cluster.node, "node.kubernetes.io/exclude-from-external-load-balancers="]);
    wait_get(&kubectl, "service second", "{.status.loadBalancer.ingress}", "");
    kubectl.run(["label", "node", &cluster.node, "node.kubernetes.io/exclude-from-external-load-balancers-"]);
    wait_get(&kubectl, "service second", "{.status.loadBalancer.ingress[0].ip}", &ip);
    kubectl.run(["patch", "service", "second", "-p", r#"{"spec":{"type":"ClusterIP"}}"#]);
    wait_get(&kubectl, "service second", "{.status.loadBalancer}", "{}");
}

#[test]
fn ranges_can_be_added_and_addresses_heal() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.33");
    wait_get(&kubectl, "servicecidr kubernetes", "{.status.conditions[0].type}={.status.conditions[0].status}", "Ready=True");
    assert_eq!(get(&kubectl, "servicecidr kubernetes", "{.metadata.finalizers[0]}"), "networking.k8s.io/service-cidr-finalizer");
    apply(
        &kubectl,
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.206.250.0/28]}\n",
    );
    wait_get(&kubectl, "servicecidr more", "{.status.conditions[0].status}", "True");
    let service =
        "apiVersion: v1\nkind: Service\nmetadata: {name: there}\nspec:\n  clusterIP: 10.206.250.5\n  ports: [{port: 80}]\n";
    apply(&kubectl, service);
    assert_eq!(get(&kubectl, "ipaddress 10.206.250.5", "{.spec.parentRef.namespace}/{.spec.parentRef.name}"), "default/there");
    for (ip, why) in [
        ("10.206.251.5", "the provided network does not match the current range"),
        ("10.206.250.0", "the provided IP (10.206.250.0) is not in the valid range. The range of valid IPs is 10.206.250.0/28"),
        ("10.206.250.5", "provided IP is already allocated"),
    ] {
        let wrong = service.replace("there", "wrong").replace("10.206.250.5", ip);
        let error = kubectl.manifest(&["create"], &wrong).unwrap_err();
        assert!(error.contains(&format!("failed to allocate IP {ip}: {why}")), "{error}");
    }
    // One that is used stays until it is not.
    kubectl.run(["delete", "servicecidr", "more", "--wait=false"]);
    wait_get(&kubectl, "servicecidr more", "{.status.conditions[0].reason}", "Terminating");
    // An address that somebody removes comes back; one without a Service goes.
    let uid = get(&kubectl, "ipaddress 10.206.250.5", "{.metadata.uid}");
    kubectl.run(["delete", "ipaddress", "10.206.250.5"]);
    wait_for("the address to come back", MINUTE, || {
        let now = get(&kubectl, "ipaddress 10.206.250.5", "{.metadata.uid}");
        if now.len() == uid.len() && now != uid { Ok(()) } else { Err(now) }
    });
    wait_for("the event of the repair", MINUTE, || {
        let events = kubectl.run(["get", "events"]);
        if events.contains("ClusterIPNotAllocated") { Ok(()) } else { Err(events) }
    });
    kubectl.run(["delete", "service", "there"]);
    kubectl.run(["wait", "--for=delete", "servicecidr/more", "--timeout=60s"]);
}

#[test]
fn the_service_kubernetes_heals() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.20");
    let before = get(&kubectl, "endpoints kubernetes", "{.subsets}");
    assert!(before.contains(&cluster.port.to_string()), "{before}");
    let slice = get(&kubectl, "endpointslice kubernetes", "{.endpoints}");
    kubectl.run(["delete", "endpoints,endpointslice,service", "kubernetes"]);
    wait_get(&kubectl, "endpoints kubernetes", "{.subsets}", &before);
    wait_get(&kubectl, "endpointslice kubernetes", "{.endpoints}", &slice);
    wait_get(&kubectl, "service kubernetes", "{.spec.ports[0].targetPort}", &cluster.port.to_string());
    kubectl.run([
        "patch",
        "endpoints",
        "kubernetes",
        "--type=merge",
        "-p",
        r#"{"subsets":[{"addresses":[{"ip":"192.0.2.9"}],"ports":[{"port":1}]}]}"#,
    ]);
    wait_get(&kubectl, "endpoints kubernetes", "{.subsets}", &before);
    let leases = kubectl.run([
        "get",
        "leases",
        "-n",
        "kube-system",
        "-l",
        "apiserver.kubernetes.io/identity=kube-apiserver",
        "-o",
        "name",
    ]);
    assert_eq!(leases.lines().count(), 1, "{leases}");
}

#[test]
fn a_hundred_services_have_slices_at_once() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.33");
    let manifest: String = (0..100)
        .map(|number| {
            format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\nspec:\n  selector: {{app: s{number}}}\n  ports: [{{port: 80}}]\n")
        })
        .collect();
    let start = Instant::now();
    apply(&kubectl, &manifest);
    let applied = start.elapsed();
    wait_for("the slices", MINUTE, || {
        let names = kubectl.run(["get", "endpointslices", "-o", "name"]);
        let count = names.lines().filter(|name| name.contains("/s")).count();
        if count == 100 { Ok(()) } else { Err(format!("{count} slices")) }
    });
    let late = start.elapsed().checked_sub(applied).unwrap();
    println!("100 Services applied in {applied:?}; all slices {late:?} later");
    assert!(late < Duration::from_secs(2), "{late:?}");
}
