//! What a specification says that becomes of its pod, and whether it has; and specifications that are right and yet come to nothing,
//! each with the words that must say why.

use serde_json::{Value, json};

use crate::pods::{shell, with};

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It runs and is ready.
    Ready,
    /// It runs, and waits only for a readiness gate.
    Gated,
    /// It runs, and a probe says that it is not ready.
    Unready,
    /// A probe ends one of its containers again and again.
    Unhealthy,
    Succeeded,
    Failed,
    /// A container that ends is started again.
    Restarts,
    /// By its index in [`TROUBLES`].
    Trouble(usize),
}

fn containers<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    spec[list].as_array().into_iter().flatten()
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// Nobody listens on port 9.
fn fails(container: &Value, probe: &str) -> bool {
    container[probe].to_string().contains("\"port\":9")
}

fn script(container: &Value) -> &str {
    fn last(list: &Value) -> Option<&str> {
        list.as_array()?.last()?.as_str()
    }
    last(&container["args"]).or_else(|| last(&container["command"])).unwrap_or("")
}

/// Whether a container that ends with this code is started again.
fn restarts(container: &Value, of_pod: &str, code: i64) -> bool {
    let rules = container["restartPolicyRules"].as_array().into_iter().flatten();
    let mut codes = rules.flat_map(|rule| rule["exitCodes"]["values"].as_array().into_iter().flatten());
    if codes.any(|listed| *listed == code) {
        return true;
    }
    match container["restartPolicy"].as_str().unwrap_or(of_pod) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// What becomes of a pod with this specification.
pub fn fate(spec: &Value) -> Fate {
    let sidecars = || containers(spec, "initContainers").filter(|container| is_sidecar(container));
    let lasting = || containers(spec, "containers").chain(sidecars());
    if lasting().any(|container| fails(container, "startupProbe") || fails(container, "livenessProbe")) {
        return Fate::Unhealthy;
    }
    let ends = containers(spec, "containers").all(|container| !script(container).contains("while"));
    let code = |container: &Value| if script(container).contains("exit 3") { 3 } else { 0 };
    if ends {
        let of_pod = spec["restartPolicy"].as_str().unwrap_or("Always");
        let mut all = containers(spec, "containers");
        return if containers(spec, "containers").any(|container| restarts(container, of_pod, code(container))) {
            Fate::Restarts
        } else if all.any(|container| code(container) != 0) {
            Fate::Failed
        } else {
            Fate::Succeeded
        };
    }
    if lasting().any(|container| fails(container, "readinessProbe")) {
        return Fate::Unready;
    }
    if spec.get("readinessGates").is_some() { Fate::Gated } else { Fate::Ready }
}

/// A pod as the API shows it, and the warnings about it.
pub struct Seen<'a> {
    pub pod: &'a Value,
    pub warnings: &'a [String],
}

impl Seen<'_> {
    fn condition(&self, name: &str) -> (&str, &str) {
        let conditions = self.pod["status"]["conditions"].as_array().into_iter().flatten();
        let found = conditions.into_iter().find(|condition| condition["type"] == name);
        found.map_or(("", ""), |found| (found["status"].as_str().unwrap_or(""), found["reason"].as_str().unwrap_or("")))
    }

    fn statuses(&self) -> impl Iterator<Item = &Value> {
        let lists = ["initContainerStatuses", "containerStatuses"];
        lists.into_iter().flat_map(|list| self.pod["status"][list].as_array().into_iter().flatten())
    }

    /// All that says why the pod is as it is.
    pub fn evidence(&self) -> String {
        let status = &self.pod["status"];
        let text =
            |value: &Value| format!("{}: {}", value["reason"].as_str().unwrap_or(""), value["message"].as_str().unwrap_or(""));
        let mut lines = vec![text(status)];
        lines.extend(status["conditions"].as_array().into_iter().flatten().map(text));
        for one in self.statuses() {
            for state in [&one["state"]["waiting"], &one["state"]["terminated"], &one["lastState"]["terminated"]] {
                if state.is_object() {
                    lines.push(format!("{} exitCode {}", text(state), state["exitCode"]));
                }
            }
        }
        lines.extend(self.warnings.iter().cloned());
        lines.join("\n")
    }

    /// Whether the pod has come to what its specification says.
    pub fn has_met(&self, fate: Fate) -> bool {
        let phase = self.pod["status"]["phase"].as_str().unwrap_or("");
        let warned = |words: &str| self.warnings.iter().any(|warning| warning.contains(words));
        match fate {
            Fate::Ready => phase == "Running" && self.condition("Ready").0 == "True",
            Fate::Gated => {
                let gate = ("False", "ReadinessGatesNotReady");
                phase == "Running" && self.condition("ContainersReady").0 == "True" && self.condition("Ready") == gate
            }
            Fate::Unready => {
                let unready = ("False", "ContainersNotReady");
                phase == "Running" && self.condition("Ready") == unready && warned("Readiness probe failed")
            }
            Fate::Unhealthy => warned("Liveness probe failed") || warned("Startup probe failed"),
            Fate::Succeeded => phase == "Succeeded",
            Fate::Failed => phase == "Failed" && self.evidence().contains("Error:  exitCode 3"),
            Fate::Restarts => {
                self.statuses().any(|one| one["restartCount"].as_i64() > Some(0) && one["lastState"]["terminated"].is_object())
            }
            Fate::Trouble(index) => {
                let trouble = &TROUBLES[index];
                (trouble.phase.is_empty() || trouble.phase == phase) && self.evidence().contains(trouble.words)
            }
        }
    }
}

/// A specification that is right, and yet its pod cannot run.
pub struct Trouble {
    pub name: &'static str,
    change: fn(&mut Value),
    phase: &'static str,
    words: &'static str,
}

const fn trouble(name: &'static str, phase: &'static str, words: &'static str, change: fn(&mut Value)) -> Trouble {
    Trouble { name, change, phase, words }
}

/// Each way to come to nothing.
pub const TROUBLES: &[Trouble] = &[
    trouble("no such node", "Pending", "didn't match Pod's node affinity/selector", |spec| {
        spec["nodeSelector"] = json!({"where": "nowhere"});
    }),
    trouble("too much CPU", "Pending", "Insufficient cpu", |spec| {
        spec["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    }),
    trouble("a gate", "Pending", "SchedulingGated", |spec| spec["schedulingGates"] = json!([{"name": "example.com/wait"}])),
    trouble("a device", "Pending", "cannot allocate all claims", |spec| {
        spec["resourceClaims"] = json!([{"name": "device", "resourceClaimTemplateName": "any"}]);
        spec["containers"][0]["resources"] = json!({"claims": [{"name": "device"}]});
    }),
    trouble("Windows", "Failed", "PodOSNotSupported", |spec| {
        spec["os"] = json!({"name": "windows"});
    }),
    trouble("a sysctl of the whole host", "Failed", "SysctlForbidden", |spec| {
        spec["securityContext"] = json!({"sysctls": [{"name": "vm.swappiness", "value": "1"}]});
    }),
    trouble("no ConfigMap for the environment", "Pending", "configmap \"absent\" not found", |spec| {
        spec["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "k"}}}]);
        spec["containers"][0].as_object_mut().unwrap().remove("volumeMounts");
    }),
    trouble("no ConfigMap for a volume", "Pending", "configmap \"absent\" not found", |spec| {
        add_volume(spec, json!({"configMap": {"name": "absent"}}));
    }),
    trouble("no key for a volume", "Pending", "references non-existent config key: none", |spec| {
        add_volume(spec, json!({"configMap": {"name": "cm", "items": [{"key": "none", "path": "p"}]}}));
    }),
    trouble("no image and no pull", "Pending", "ErrImageNeverPull", |spec| {
        spec["containers"][0]["image"] = json!("orch-none:1");
        spec["containers"][0]["imagePullPolicy"] = json!("Never");
    }),
    trouble("no registry", "Pending", "127.0.0.1:1/none", |spec| spec["containers"][0]["image"] = json!("127.0.0.1:1/none:1")),
    trouble("no command", "", "no such file", |spec| spec["containers"][0]["command"] = json!(["/no/such"])),
    trouble("root where none may be", "Pending", "image will run as root", |spec| {
        spec["securityContext"] = json!({});
        spec["containers"][0]["securityContext"] = json!({"runAsNonRoot": true});
    }),
    trouble("a hook that fails", "", "PostStartHook failed", |spec| {
        let lasting = shell("c0", "while :; do sleep 0.2; done");
        spec["containers"] = json!([with(lasting, json!({"lifecycle": {"postStart": {"exec": {"command": ["false"]}}}}))]);
    }),
    trouble("an initialization that fails", "", "exitCode 3", |spec| {
        spec["initContainers"] = json!([shell("i0", "exit 3")]);
    }),
    trouble("a deadline", "Failed", "DeadlineExceeded", |spec| {
        spec["containers"] = json!([shell("c0", "while :; do sleep 0.2; done")]);
        spec["activeDeadlineSeconds"] = json!(1);
    }),
    trouble("no seccomp profile", "Pending", "cannot load seccomp profile", |spec| {
        let profile = json!({"type": "Localhost", "localhostProfile": "none.json"});
        spec["containers"][0]["securityContext"] = json!({"seccompProfile": profile});
    }),
    trouble("too little memory", "Pending", "inimum memory limit", |spec| {
        spec["containers"][0]["resources"] = json!({"limits": {"memory": "1Mi"}});
    }),
    trouble("no env file", "Pending", "env file none not found", |spec| {
        add_volume(spec, json!({"emptyDir": {}}));
        let file = json!({"volumeName": "more", "path": "none", "key": "K"});
        spec["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {"fileKeyRef": file}}]);
        spec["containers"][0].as_object_mut().unwrap().remove("volumeMounts");
    }),
    trouble("no such directory", "Pending", "hostPath type check failed", |spec| {
        add_volume(spec, json!({"hostPath": {"path": "/no/such", "type": "Directory"}}));
    }),
    trouble("no claim", "Pending", "persistentvolumeclaim \"absent\" not found", |spec| {
        add_volume(spec, json!({"persistentVolumeClaim": {"claimName": "absent"}}));
    }),
    trouble("no such runtime", "Pending", "unknown runtime handler", |spec| spec["runtimeClassName"] = json!("odd")),
    trouble("too long a name", "Pending", "is too long", |spec| {
        let names = json!({"hostname": "h".repeat(60), "subdomain": "s", "setHostnameAsFQDN": true, "hostNetwork": false});
        *spec = with(spec.take(), names);
        spec.as_object_mut().unwrap().remove("hostnameOverride");
    }),
];

fn add_volume(spec: &mut Value, volume: Value) {
    let volumes = spec.as_object_mut().unwrap().entry("volumes").or_insert(json!([]));
    volumes.as_array_mut().unwrap().push(with(volume, json!({"name": "more"})));
}

/// Turns a specification into one of [`TROUBLES`], which nothing else then hides.
pub fn troubled(spec: &mut Value, index: usize) {
    for field in ["initContainers", "resources"] {
        spec.as_object_mut().unwrap().remove(field);
    }
    for container in spec["containers"].as_array_mut().unwrap() {
        for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources"] {
            container.as_object_mut().unwrap().remove(field);
        }
    }
    (TROUBLES[index].change)(spec);
}
