//! Claims of pods over a table of clusters.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::snapshot::Snapshot;
use super::super::snapshot::tests::node;
use super::*;

#[derive(Default)]
struct Known {
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    classes: BTreeMap<String, Arc<StorageClass>>,
    promised: BTreeMap<String, String>,
}

impl Lookup for Known {
    fn claim(&self, _namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(name).cloned()
    }
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(name).cloned()
    }
    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(name).cloned()
    }
    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.values().cloned().collect()
    }
    fn promised_to(&self, volume: &str) -> Option<String> {
        self.promised.get(volume).cloned()
    }
    fn promised_node(&self, _claim: &str) -> Option<String> {
        None
    }
}

impl Known {
    fn claim(mut self, name: &str, class: &str, volume: Option<&str>, meta: &Value) -> Self {
        let mut value = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "annotations": {}},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}});
        for (key, extra) in meta.as_object().into_iter().flatten() {
            value["metadata"][key] = extra.clone();
        }
        if let Some(volume) = volume {
            value["spec"]["volumeName"] = json!(volume);
            value["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
        }
        self.claims.insert(name.to_owned(), Arc::new(serde_json::from_value(value).unwrap()));
        self
    }

    fn volume(mut self, name: &str, class: &str, host: &str) -> Self {
        let value = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}}});
        self.volumes.insert(name.to_owned(), Arc::new(serde_json::from_value(value).unwrap()));
        self
    }

    fn class(mut self, name: &str, provisioner: &str, mode: &str) -> Self {
        let value = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        self.classes.insert(name.to_owned(), Arc::new(serde_json::from_value(value).unwrap()));
        self
    }
}

fn pod(claims: &[&str]) -> Pod {
    let volumes: Vec<Value> =
        claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"containers": [], "volumes": volumes}}))
        .unwrap()
}

/// `blocked: …`, or for nodes n1 and n2: the conflict, or how many volumes are bound and asked for.
fn short(known: &Known, claims: &[&str]) -> String {
    let claims = Claims::of(&pod(claims), known);
    if let Some(why) = &claims.blocked {
        return format!("blocked: {why}");
    }
    let mut snapshot = Snapshot::default();
    let on = ["n1", "n2"].map(|name| {
        snapshot.set_node(node(name, "1", &json!({"kubernetes.io/hostname": name})));
        match claims.plan(snapshot.node(snapshot.find(name).unwrap())) {
            Ok(plan) => format!("bind {} make {}", plan.bind.len(), plan.provision.len()),
            Err(conflict) => format!("{conflict:?}"),
        }
    });
    on.join("; ")
}

#[test]
fn where_the_volumes_let_a_pod_run() {
    let later = "WaitForFirstConsumer";
    let classes = || {
        Known::default().class("now", "x.io/y", "Immediate").class("later", "x.io/y", later).class(
            "static",
            "kubernetes.io/no-provisioner",
            later,
        )
    };
    let plain = json!({});
    let placed = json!({"annotations": {"volume.kubernetes.io/selected-node": "n2"}});
    let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    for (known, claims, expected) in [
        (classes(), &[][..], "bind 0 make 0; bind 0 make 0"),
        (classes(), &["c"][..], "blocked: persistentvolumeclaim \"c\" not found"),
        (classes().claim("c", "now", None, &plain), &["c"], "blocked: pod has unbound immediate PersistentVolumeClaims"),
        (classes().claim("c", "later", None, &going), &["c"], "blocked: persistentvolumeclaim \"c\" is being deleted"),
        (classes().claim("c", "later", None, &plain), &["c"], "bind 0 make 1; bind 0 make 1"),
        (classes().claim("c", "later", None, &placed), &["c"], "NothingToBind; bind 0 make 1"),
        (classes().claim("c", "static", None, &plain), &["c"], "NothingToBind; NothingToBind"),
        (classes().claim("c", "static", None, &plain).volume("v", "static", "n1"), &["c"], "bind 1 make 0; NothingToBind"),
        (
            classes().claim("c", "static", None, &plain).claim("d", "static", None, &plain).volume("v", "static", "n1"),
            &["c", "d"],
            "NothingToBind; NothingToBind",
        ),
        (classes().claim("c", "later", Some("v"), &plain).volume("v", "later", "n2"), &["c"], "NodeAffinity; bind 0 make 0"),
        (classes().claim("c", "later", Some("v"), &plain), &["c"], "Missing; Missing"),
    ] {
        assert_eq!(short(&known, claims), expected);
    }
}

#[test]
fn what_is_promised_is_not_given_again() {
    let mut known = Known::default().class("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer");
    known = known.claim("c", "static", None, &json!({})).volume("v", "static", "n1");
    known.promised.insert("v".to_owned(), "a/other".to_owned());
    assert_eq!(short(&known, &["c"]), "NothingToBind; NothingToBind");
    known.promised.insert("v".to_owned(), "a/c".to_owned());
    assert_eq!(short(&known, &["c"]), "bind 1 make 0; NothingToBind");
}
