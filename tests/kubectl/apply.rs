//! Server-side apply with the real kubectls and Helm: who owns which field, conflicts and their text, the way over from
//! `kubectl apply` as it was.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Cluster, KUBECTLS, Kubectl, text};

fn deployment(replicas: &str, more: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {{app: web{more}}}
spec:
  {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      containers:
      - name: main
        image: nginx:1.14
        ports: [{{containerPort: 80}}]
"#
    )
}

fn managers(kubectl: &Kubectl, what: &[&str]) -> Vec<String> {
    let shown = kubectl.run(["get"].iter().chain(what).copied().chain(["-o", "json"]).chain(shows(kubectl)));
    let object: Value = serde_json::from_str(&shown).unwrap();
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let name =
        |entry: &Value| format!("{} {} {}", text(&entry["manager"]), text(&entry["operation"]), text(&entry["subresource"]));
    list.iter().map(|entry| name(entry).trim_end().to_owned()).collect()
}

/// Kubectls before 1.21 show the managed fields always.
fn shows(kubectl: &Kubectl) -> Option<&'static str> {
    (kubectl.version != "1.20").then_some("--show-managed-fields")
}

fn applied(kubectl: &Kubectl, arguments: &[&str], manifest: &str) -> Result<String, String> {
    kubectl.manifest(&[&["apply", "--server-side"], arguments].concat(), manifest)
}

#[test]
fn server_side_apply() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    for version in KUBECTLS {
        let namespace = format!("v{}", version.replace('.', "-"));
        cluster.kubectl(version).run(["create", "namespace", &namespace]);
        let kubectl = cluster.kubectl(version).in_namespace(&namespace);
        owns_and_conflicts(&kubectl);
        removes_what_is_no_longer_applied(&kubectl);
        comes_over_from_client_side(&kubectl);
        is_refused_in_upstreams_words(&kubectl);
    }
}

fn owns_and_conflicts(kubectl: &Kubectl) {
    let said = applied(kubectl, &[], &deployment("replicas: 1", "")).unwrap();
    assert_eq!(said.trim(), "deployment.apps/web serverside-applied");
    assert_eq!(managers(kubectl, &["deployment", "web"])[0], "kubectl Apply");
    // The same again changes nothing.
    let revision = || kubectl.jsonpath(&["deployment", "web"], "{.metadata.generation}");
    let before = revision();
    applied(kubectl, &[], &deployment("replicas: 1", "")).unwrap();
    assert_eq!(revision(), before);
    // Another manager: one conflict, two, equal values, force.
    let said = applied(kubectl, &["--field-manager=other"], &deployment("replicas: 2", "")).unwrap_err();
    let text = "Apply failed with 1 conflict: conflict with \"kubectl\": .spec.replicas\nPlease review the fields above";
    assert!(said.contains(text), "{said}");
    let two = deployment("replicas: 2", "").replace("nginx:1.14", "nginx:1.15");
    let said = applied(kubectl, &["--field-manager=other"], &two).unwrap_err();
    let text = "Apply failed with 2 conflicts: conflicts with \"kubectl\":\n- .spec.replicas\n- .spec.template.spec.containers[name=\"main\"].image";
    assert!(said.contains(text), "{said}");
    applied(kubectl, &["--field-manager=other"], &deployment("replicas: 1", "")).unwrap();
    let all = managers(kubectl, &["deployment", "web"]);
    assert!(all.contains(&"kubectl Apply".to_owned()) && all.contains(&"other Apply".to_owned()), "{all:?}");
    applied(kubectl, &["--field-manager=other", "--force-conflicts"], &deployment("replicas: 2", "")).unwrap();
    assert_eq!(kubectl.jsonpath(&["deployment", "web"], "{.spec.replicas}"), "2");
    let said = applied(kubectl, &[], &deployment("replicas: 1", "")).unwrap_err();
    assert!(said.contains("conflict with \"other\": .spec.replicas"), "{said}");
    // A patch is an update of its manager; what it takes conflicts too.
    kubectl.run(["patch", "deployment", "web", "--type=merge", "-p", r#"{"spec":{"replicas":3}}"#]);
    let said = applied(kubectl, &[], &deployment("replicas: 1", "")).unwrap_err();
    let text = "Apply failed with 1 conflict: conflict with \"kubectl-patch\" using apps/v1: .spec.replicas";
    assert!(said.contains(text), "{said}");
    kubectl.run(["scale", "deployment", "web", "--replicas=4"]);
    let said = applied(kubectl, &[], &deployment("replicas: 1", "")).unwrap_err();
    assert!(said.contains("with subresource \"scale\" using apps/v1: .spec.replicas"), "{said}");
    // Without the field there is no conflict, and what another owns stays.
    applied(kubectl, &[], &deployment("", "")).unwrap();
    assert_eq!(kubectl.jsonpath(&["deployment", "web"], "{.spec.replicas}"), "4");
    kubectl.run(["delete", "deployment", "web"]);
}

fn removes_what_is_no_longer_applied(kubectl: &Kubectl) {
    applied(kubectl, &[], &deployment("replicas: 1", ", tier: front")).unwrap();
    kubectl.run(["label", "deployment", "web", "kept=yes"]);
    let dry = ["--dry-run=server", "-o", "jsonpath={.metadata.labels}"];
    let shown = applied(kubectl, &dry, &deployment("replicas: 1", "")).unwrap();
    assert!(!shown.contains("tier") && shown.contains("kept"), "{shown}");
    let mut diff = kubectl.command(["diff", "--server-side", "-f", "-"]);
    let output = piped(&mut diff, &deployment("replicas: 5", ", tier: front"));
    assert!(output.contains("-  replicas: 1\n+  replicas: 5"), "{output}");
    assert!(kubectl.jsonpath(&["deployment", "web"], "{.metadata.labels}").contains("tier"));
    applied(kubectl, &[], &deployment("replicas: 1", "")).unwrap();
    let labels = kubectl.jsonpath(&["deployment", "web"], "{.metadata.labels}");
    assert!(labels.contains("app") && labels.contains("kept") && !labels.contains("tier"), "{labels}");
    kubectl.run(["delete", "deployment", "web"]);
}

fn piped(command: &mut Command, input: &str) -> String {
    use std::io::Write;
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn comes_over_from_client_side(kubectl: &Kubectl) {
    kubectl.manifest(&["apply"], &deployment("replicas: 1", ", tier: front")).unwrap();
    assert_eq!(managers(kubectl, &["deployment", "web"]), [""; 0]);
    let said = applied(kubectl, &["--field-manager=other"], &deployment("replicas: 2", "")).unwrap_err();
    let text = "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas";
    assert!(said.contains(text), "{said}");
    // kubectl itself goes on from its annotation, without conflict.
    applied(kubectl, &[], &deployment("replicas: 2", "")).unwrap();
    assert_eq!(kubectl.jsonpath(&["deployment", "web"], "{.spec.replicas}"), "2");
    let last = kubectl.run(["apply", "view-last-applied", "deployment/web"]);
    assert!(last.contains("replicas: 2"), "{last}");
    let all = managers(kubectl, &["deployment", "web"]);
    assert!(all.contains(&"kubectl Apply".to_owned()), "{all:?}");
    // Newer kubectls move what they owned to the applier, so that what is no longer applied goes.
    if kubectl.version != "1.20" {
        assert!(!all.iter().any(|name| name.starts_with("kubectl-client-side-apply")), "{all:?}");
        assert!(!kubectl.jsonpath(&["deployment", "web"], "{.metadata.labels}").contains("tier"));
    }
    // And back.
    kubectl.manifest(&["apply"], &deployment("replicas: 3", "")).unwrap();
    assert_eq!(kubectl.jsonpath(&["deployment", "web"], "{.spec.replicas}"), "3");
    kubectl.run(["delete", "deployment", "web"]);
}

fn is_refused_in_upstreams_words(kubectl: &Kubectl) {
    let unknown = deployment("replica: 1", "");
    let said = applied(kubectl, &["--validate=false"], &unknown).unwrap_err();
    let text = "failed to create typed patch object (";
    assert!(
        said.contains(text) && said.contains("; apps/v1, Kind=Deployment): .spec.replica: field not declared in schema"),
        "{said}"
    );
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, resourceVersion: \"1\"}\n";
    let plain = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    kubectl.manifest(&["create"], plain).unwrap();
    let said = applied(kubectl, &[], map).unwrap_err();
    assert!(said.contains("the object has been modified; please apply your changes to the latest version"), "{said}");
    kubectl.run(["delete", "configmap", "a"]);
    // An apply that would create needs more than the right to patch.
    kubectl.run(["create", "role", "patcher", "--verb=get,patch", "--resource=configmaps"]);
    kubectl.run(["create", "rolebinding", "patcher", "--role=patcher", "--user=bob"]);
    let said = applied(kubectl, &["--as=bob", "--validate=false"], plain).unwrap_err();
    let text =
        "configmaps \"a\" is forbidden: User \"bob\" cannot create resource \"configmaps\" in API group \"\" in the namespace";
    assert!(said.contains(text), "{said}");
    applied(kubectl, &[], plain).unwrap();
    applied(kubectl, &["--as=bob", "--validate=false"], plain).unwrap();
}

fn write_chart(folder: &Path) {
    fs::create_dir_all(folder.join("templates")).unwrap();
    fs::write(folder.join("Chart.yaml"), "apiVersion: v2\nname: web\nversion: 0.1.0\n").unwrap();
    fs::write(folder.join("values.yaml"), "replicas: 1\nextra: true\n").unwrap();
    fs::write(folder.join("templates/deployment.yaml"), deployment("replicas: {{ .Values.replicas }}", "")).unwrap();
    let map = "{{ if .Values.extra }}\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: extra}\ndata: {a: \"{{ .Values.replicas }}\"}\n{{ end }}\n";
    fs::write(folder.join("templates/map.yaml"), map).unwrap();
}

#[test]
fn helm_applies_on_the_server() {
    let cluster = Cluster::start_with(&["--disable-agent"]);
    let kubectl = cluster.kubectl("1.33");
    let folder = tempfile::tempdir().unwrap();
    write_chart(folder.path());
    let chart = folder.path().to_str().unwrap();
    let helm = |arguments: &[&str]| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/helm");
        assert!(path.exists(), "{} is missing: run tests/tools/fetch", path.display());
        let mut command = Command::new(path);
        command.env("KUBECONFIG", cluster.kubeconfig()).env("HOME", folder.path()).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "helm {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    };
    let replicas = || kubectl.jsonpath(&["deployment", "web"], "{.spec.replicas}");
    helm(&["install", "web", chart]);
    assert_eq!(replicas(), "1");
    assert_eq!(managers(&kubectl, &["configmap", "extra"]), ["helm Apply"]);
    helm(&["upgrade", "web", chart, "--set", "replicas=2,extra=false"]);
    assert_eq!(replicas(), "2");
    assert!(kubectl.fails(["get", "configmap", "extra"]).contains("NotFound"));
    helm(&["rollback", "web", "1"]);
    assert_eq!((replicas().as_str(), kubectl.jsonpath(&["configmap", "extra"], "{.data.a}").as_str()), ("1", "1"));
    helm(&["uninstall", "web"]);
    assert!(kubectl.fails(["get", "deployment", "web"]).contains("NotFound"));
}
