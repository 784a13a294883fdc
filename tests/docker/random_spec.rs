//! Specifications of pods made by chance, right by construction; most fields that a pod can have are used by one or another.

use serde_json::{Value, json};

use crate::pods::{shell, with};

/// Numbers by chance, the same ones from the same seed (xorshift).
pub struct Chance(pub u64);

impl Chance {
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("ORCH_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
        println!("ORCH_TEST_SEED={seed}");
        Self(seed.max(1))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    pub fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    pub fn value(&mut self, list: &[Value]) -> Value {
        list[self.below(list.len())].clone()
    }
}

/// Sets a field, one time in so many.
pub fn maybe(chance: &mut Chance, bound: usize, object: &mut Value, field: &str, value: impl FnOnce(&mut Chance) -> Value) {
    if chance.one_in(bound) {
        object[field] = value(chance);
    }
}

pub const VOLUMES: usize = 15;

/// A volume of each kind that exists here.
pub fn volume(chance: &mut Chance, kind: usize, host: &str) -> Value {
    let mode = |chance: &mut Chance| chance.value(&[json!(420), json!(256), json!(493)]);
    match kind {
        0 => json!({"emptyDir": {}}),
        1 => json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
        2 => json!({"emptyDir": {"sizeLimit": "100Mi"}}),
        3 => json!({"configMap": {"name": "cm", "defaultMode": mode(chance)}}),
        4 => json!({"configMap": {"name": "cm", "items": [{"key": "K", "path": "d/k", "mode": 256}]}}),
        5 => json!({"configMap": {"name": "absent", "optional": true}}),
        6 => json!({"secret": {"secretName": "s", "defaultMode": mode(chance)}}),
        7 => json!({"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c0", "resource": "limits.cpu", "divisor": "1m"}}]}}),
        8 => {
            json!({"projected": {"defaultMode": mode(chance), "sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600, "audience": "x"}},
            {"configMap": {"name": "cm", "items": [{"key": "K", "path": "k"}]}}, {"secret": {"name": "s"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}})
        }
        9 => json!({"hostPath": {"path": format!("{host}/dir"), "type": "DirectoryOrCreate"}}),
        10 => json!({"hostPath": {"path": format!("{host}/by-itself")}}),
        11 => json!({"persistentVolumeClaim": {"claimName": "claim"}}),
        12 => {
            json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}}})
        }
        13 => {
            json!({"projected": {"sources": [{"clusterTrustBundle": {"name": "absent", "optional": true, "path": "ca"}},
                {"secret": {"name": "absent", "optional": true}}]}})
        }
        _ => json!({"image": {"reference": "busybox:latest", "pullPolicy": "IfNotPresent"}}),
    }
}

fn is_writable(kind: usize) -> bool {
    matches!(kind, 0..=2 | 9..=12)
}

fn probe(chance: &mut Chance, is_readiness: bool) -> Value {
    let mut probe = chance.value(&[
        json!({"exec": {"command": ["true"]}}),
        json!({"exec": {"command": ["sh", "-c", "test -d /"]}}),
        json!({"tcpSocket": {"port": 9}}),
        json!({"httpGet": {"port": 9, "path": "/x", "scheme": "HTTPS", "httpHeaders": [{"name": "X-Y", "value": "z"}]}}),
        json!({"grpc": {"port": 9, "service": "s"}}),
    ]);
    maybe(chance, 2, &mut probe, "periodSeconds", |_| json!(1));
    maybe(chance, 3, &mut probe, "initialDelaySeconds", |_| json!(1));
    maybe(chance, 3, &mut probe, "timeoutSeconds", |_| json!(2));
    maybe(chance, 3, &mut probe, "failureThreshold", |_| json!(30));
    if is_readiness {
        maybe(chance, 3, &mut probe, "successThreshold", |_| json!(2));
    } else {
        maybe(chance, 3, &mut probe, "terminationGracePeriodSeconds", |_| json!(1));
    }
    probe
}

fn hook(chance: &mut Chance) -> Value {
    chance.value(&[json!({"exec": {"command": ["true"]}}), json!({"sleep": {"seconds": 1}}), json!({"sleep": {"seconds": 0}})])
}

fn environment(chance: &mut Chance) -> Value {
    let all = [
        json!({"name": "PLAIN", "value": "x $(HOSTNAME) $$(NOT)"}),
        json!({"name": "with.dots-and_more", "value": ""}),
        json!({"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
        json!({"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}),
        json!({"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}),
        json!({"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "K"}}}),
        json!({"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "P"}}}),
        json!({"name": "HOST", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIP"}}}),
        json!({"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}),
        json!({"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"containerName": "c0", "resource": "requests.memory", "divisor": "1Mi"}}}),
        json!({"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "K", "optional": true}}}),
        json!({"name": "NO_SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}}),
    ];
    Value::Array(all.into_iter().filter(|_| chance.one_in(3)).collect())
}

fn resources(chance: &mut Chance) -> Value {
    chance.value(&[
        json!({}),
        json!({"requests": {"cpu": "1m"}}),
        json!({"limits": {"cpu": "100m", "memory": "32Mi"}}),
        json!({"requests": {"cpu": "0.005", "memory": "8Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}),
        json!({"requests": {"ephemeral-storage": "1Mi"}, "limits": {"ephemeral-storage": "1Gi"}}),
    ])
}

fn container_security(chance: &mut Chance) -> Value {
    let mut context = chance.value(&[
        json!({}),
        json!({"privileged": true}),
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
        json!({"runAsUser": 1000, "runAsGroup": 2000, "runAsNonRoot": true}),
        json!({"capabilities": {"add": ["NET_ADMIN", "SYS_PTRACE"], "drop": ["CHOWN"]}}),
    ]);
    maybe(chance, 4, &mut context, "readOnlyRootFilesystem", |_| json!(true));
    maybe(chance, 4, &mut context, "procMount", |_| json!("Default"));
    maybe(chance, 4, &mut context, "seccompProfile", |chance| json!({"type": chance.pick(&["RuntimeDefault", "Unconfined"])}));
    maybe(chance, 6, &mut context, "appArmorProfile", |_| json!({"type": "Unconfined"}));
    maybe(chance, 6, &mut context, "seLinuxOptions", |_| json!({"level": "s0:c1,c2"}));
    context
}

/// What a container does: it ends well or ill, or goes on.
fn script(chance: &mut Chance, ends: bool) -> &'static str {
    if ends {
        chance.pick(&["exit 0", "env > /dev/null", "exit 3", "sleep 0.2; id"])
    } else {
        "trap 'exit 0' TERM; while :; do sleep 0.2; done"
    }
}

fn container(chance: &mut Chance, name: &str, script: &str, volumes: &[usize], with_probes: bool) -> Value {
    let mut container = shell(name, script);
    if chance.one_in(3) {
        container = json!({"name": name, "command": ["sh"], "args": ["-c", script]});
    }
    container["image"] = json!(chance.pick(&["busybox", "busybox:latest", "tools"]));
    let mounts = volumes.iter().enumerate().map(|(place, kind)| (!chance.one_in(4)).then(|| mount(chance, place, *kind)));
    let mounts: Vec<Value> = mounts.collect::<Vec<_>>().into_iter().flatten().collect();
    if !mounts.is_empty() {
        container["volumeMounts"] = json!(mounts);
    }
    container["env"] = environment(chance);
    maybe(
        chance,
        4,
        &mut container,
        "envFrom",
        |_| json!([{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}]),
    );
    container["resources"] = resources(chance);
    maybe(chance, 2, &mut container, "securityContext", container_security);
    maybe(chance, 5, &mut container, "workingDir", |_| json!("/tmp"));
    maybe(chance, 6, &mut container, "tty", |_| json!(true));
    maybe(chance, 6, &mut container, "stdin", |_| json!(true));
    maybe(chance, 5, &mut container, "terminationMessagePolicy", |_| json!("FallbackToLogsOnError"));
    maybe(chance, 6, &mut container, "terminationMessagePath", |_| json!("/dev/last-words"));
    maybe(chance, 4, &mut container, "ports", |chance| {
        let mut ports = json!([{"name": "web", "containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]);
        if chance.one_in(3) {
            ports[0]["hostPort"] = json!(20_000 + chance.below(20_000));
            maybe(chance, 2, &mut ports[0], "hostIP", |_| json!("127.0.0.1"));
        }
        ports
    });
    if !with_probes && chance.one_in(4) {
        container["restartPolicy"] = json!(chance.pick(&["Never", "OnFailure"]));
        maybe(
            chance,
            2,
            &mut container,
            "restartPolicyRules",
            |chance| json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [chance.value(&[json!(3), json!(42)])]}}]),
        );
    }
    if with_probes {
        maybe(chance, 4, &mut container, "readinessProbe", |chance| probe(chance, true));
        maybe(chance, 6, &mut container, "livenessProbe", |chance| probe(chance, false));
        maybe(chance, 6, &mut container, "startupProbe", |chance| probe(chance, false));
        maybe(chance, 4, &mut container, "lifecycle", |chance| json!({"postStart": hook(chance), "preStop": hook(chance)}));
        maybe(chance, 6, &mut container, "resizePolicy", |_| json!([{"resourceName": "cpu", "restartPolicy": "NotRequired"}]));
    }
    container
}

fn mount(chance: &mut Chance, place: usize, kind: usize) -> Value {
    let mut mount = json!({"name": format!("v{place}"), "mountPath": format!("/mnt/v{place}")});
    if is_writable(kind) {
        maybe(chance, 4, &mut mount, "subPath", |_| json!("sub/dir"));
        if mount.get("subPath").is_none() {
            maybe(chance, 6, &mut mount, "subPathExpr", |_| json!("made-$(SUB)"));
        }
    }
    maybe(chance, 4, &mut mount, "readOnly", |_| json!(true));
    if mount.get("readOnly").is_some() {
        maybe(chance, 3, &mut mount, "recursiveReadOnly", |chance| json!(chance.pick(&["Disabled", "IfPossible"])));
    }
    maybe(chance, 6, &mut mount, "mountPropagation", |_| json!("None"));
    mount
}

fn pod_security(chance: &mut Chance, own_network: bool, own_ipc: bool) -> Value {
    let mut context = json!({});
    maybe(chance, 4, &mut context, "fsGroup", |_| json!(3000));
    maybe(chance, 4, &mut context, "fsGroupChangePolicy", |chance| json!(chance.pick(&["Always", "OnRootMismatch"])));
    maybe(chance, 4, &mut context, "supplementalGroups", |_| json!([4000, 5000]));
    maybe(chance, 6, &mut context, "seccompProfile", |_| json!({"type": "RuntimeDefault"}));
    maybe(chance, 6, &mut context, "seLinuxChangePolicy", |_| json!("Recursive"));
    maybe(chance, 8, &mut context, "seLinuxOptions", |_| json!({"user": "u", "role": "r", "type": "t", "level": "s0"}));
    maybe(chance, 8, &mut context, "appArmorProfile", |_| json!({"type": "Unconfined"}));
    if chance.one_in(5) {
        context = with(
            context,
            json!({"runAsUser": 1001, "runAsGroup": 1002, "supplementalGroupsPolicy": chance.pick(&["Merge", "Strict"])}),
        );
    }
    if own_network {
        maybe(chance, 4, &mut context, "sysctls", |_| json!([{"name": "net.ipv4.tcp_syncookies", "value": "1"}]));
    } else if own_ipc {
        maybe(chance, 4, &mut context, "sysctls", |_| json!([{"name": "kernel.shm_rmid_forced", "value": "1"}]));
    }
    context
}

fn placement(chance: &mut Chance, spec: &mut Value) {
    let selector = json!({"matchLabels": {"app": "random"}});
    maybe(chance, 5, spec, "nodeSelector", |_| json!({"kubernetes.io/os": "linux"}));
    maybe(
        chance,
        5,
        spec,
        "tolerations",
        |_| json!([{"operator": "Exists"}, {"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute", "tolerationSeconds": 60}]),
    );
    maybe(chance, 4, spec, "topologySpreadConstraints", |chance| {
        let soft = json!({"maxSkew": 5, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector});
        let hard = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/os", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector,
            "minDomains": 1, "nodeAffinityPolicy": "Ignore", "nodeTaintsPolicy": "Honor", "matchLabelKeys": ["app"]});
        chance.value(&[json!([soft]), json!([soft, hard])])
    });
    maybe(chance, 4, spec, "affinity", |chance| {
        let node = json!({"key": "kubernetes.io/arch", "operator": "Exists"});
        let mut term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": selector});
        maybe(chance, 3, &mut term, "namespaces", |_| json!(["default", "elsewhere"]));
        maybe(chance, 3, &mut term, "namespaceSelector", |chance| {
            chance.value(&[json!({}), json!({"matchLabels": {"none": "x"}})])
        });
        maybe(chance, 3, &mut term, "matchLabelKeys", |_| json!(["app"]));
        maybe(chance, 3, &mut term, "mismatchLabelKeys", |_| json!(["absent"]));
        let lonely = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "none"}}});
        chance.value(&[
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}}}),
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {"matchExpressions": [node]}}]}}),
            json!({"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}),
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}}),
            json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [lonely]}}),
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "none", "operator": "DoesNotExist"}],
                 "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["other"]}]}]}}}),
        ])
    });
    maybe(chance, 5, spec, "priorityClassName", |_| json!("some"));
    maybe(chance, 6, spec, "runtimeClassName", |chance| json!(chance.pick(&["runc", "heavy"])));
    maybe(chance, 6, spec, "preemptionPolicy", |_| json!("PreemptLowerPriority"));
}

fn identity(chance: &mut Chance, spec: &mut Value) {
    maybe(chance, 5, spec, "hostname", |_| json!("named"));
    maybe(chance, 5, spec, "subdomain", |_| json!("below"));
    maybe(chance, 6, spec, "setHostnameAsFQDN", |_| json!(true));
    if spec.get("setHostnameAsFQDN").is_none() && spec.get("hostNetwork").is_none() {
        maybe(chance, 6, spec, "hostnameOverride", |_| json!("over.ridden"));
    }
    maybe(chance, 6, spec, "terminationGracePeriodSeconds", |_| json!(3));
    maybe(chance, 6, spec, "resources", |_| json!({"requests": {"memory": "256Mi"}, "limits": {"memory": "256Mi"}}));
    maybe(chance, 5, spec, "hostAliases", |_| json!([{"ip": "192.0.2.7", "hostnames": ["seven", "seven.example"]}]));
    maybe(chance, 4, spec, "dnsPolicy", |chance| {
        json!(chance.pick(&["ClusterFirst", "Default", "ClusterFirstWithHostNet", "None"]))
    });
    if spec["dnsPolicy"] == "None" || chance.one_in(5) {
        spec["dnsConfig"] = json!({"nameservers": ["192.0.2.53"], "searches": ["example.org"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
    }
    maybe(chance, 6, spec, "serviceAccountName", |_| json!("robot"));
    maybe(chance, 6, spec, "automountServiceAccountToken", |_| json!(false));
    maybe(chance, 6, spec, "enableServiceLinks", |_| json!(false));
    maybe(chance, 6, spec, "imagePullSecrets", |_| json!([{"name": "absent"}]));
    maybe(chance, 6, spec, "os", |_| json!({"name": "linux"}));
    maybe(chance, 6, spec, "readinessGates", |_| json!([{"conditionType": "example.com/ready"}]));
    maybe(chance, 8, spec, "activeDeadlineSeconds", |_| json!(600));
}

/// A spec that is right, by construction.
pub fn right(chance: &mut Chance, host: &str) -> Value {
    let host_network = chance.one_in(6);
    let host_ipc = chance.one_in(8);
    let host_pid = chance.one_in(8);
    let volumes: Vec<usize> = (0..chance.below(4)).map(|_| chance.below(VOLUMES)).collect();
    let ends = chance.one_in(3);
    let mut spec = json!({"restartPolicy": if ends { chance.pick(&["Never", "OnFailure"]) } else { chance.pick(&["Always", "OnFailure", "Never"]) }});
    let containers: Vec<Value> = (0..=chance.below(2))
        .map(|number| {
            let script = script(chance, ends);
            container(chance, &format!("c{number}"), script, &volumes, !ends)
        })
        .collect();
    let init: Vec<Value> = (0..chance.below(3))
        .map(|number| {
            let is_sidecar = chance.one_in(2);
            let script = if is_sidecar { script(chance, false) } else { chance.pick(&["exit 0", "sleep 0.1"]) };
            let container = container(chance, &format!("i{number}"), script, &volumes, is_sidecar);
            if is_sidecar { with(container, json!({"restartPolicy": "Always"})) } else { container }
        })
        .collect();
    spec["containers"] = json!(containers);
    if !init.is_empty() {
        spec["initContainers"] = json!(init);
    }
    for list in ["containers", "initContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let expressions = container["volumeMounts"]
                .as_array()
                .is_some_and(|all| all.iter().any(|mount| mount.get("subPathExpr").is_some()));
            if expressions {
                container["env"].as_array_mut().unwrap().push(json!({"name": "SUB", "value": "here"}));
            }
            if host_network {
                // Two pods on the host's network would clash.
                container.as_object_mut().unwrap().remove("ports");
            }
        }
    }
    if !volumes.is_empty() {
        let named = volumes
            .iter()
            .enumerate()
            .map(|(place, kind)| with(volume(chance, *kind, host), json!({"name": format!("v{place}")})));
        spec["volumes"] = named.collect();
    }
    for (field, is_on) in [("hostNetwork", host_network), ("hostIPC", host_ipc), ("hostPID", host_pid)] {
        if is_on {
            spec[field] = json!(true);
        }
    }
    if !host_pid {
        maybe(chance, 6, &mut spec, "shareProcessNamespace", |_| json!(true));
    }
    spec["securityContext"] = pod_security(chance, !host_network, !host_ipc);
    placement(chance, &mut spec);
    identity(chance, &mut spec);
    if spec.get("os").is_some() {
        let signal = chance.pick(&["SIGTERM", "SIGINT", "SIGUSR1"]).to_owned();
        spec["containers"][0]["lifecycle"]["stopSignal"] = json!(signal);
    }
    spec
}
