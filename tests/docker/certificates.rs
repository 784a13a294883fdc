//! Certificates in pods: the test plays the signer, with the real openssl.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::pods::{self, events, make, shell, until_event, until_ready, with};
use crate::support::{Cluster, Kubectl, run, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);

/// Who signs.
struct Signer<'a> {
    kubectl: &'a Kubectl,
    folder: &'a Path,
}

impl Signer<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn with_ca(self) -> Self {
        let (key, ca) = (self.path("ca.key"), self.path("ca.pem"));
        let kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=signer"];
        run("openssl", kind.into_iter().chain(["-days", "2", "-keyout", &key, "-out", &ca]));
        self
    }

    /// The requests for a pod that are not decided, once there are so many.
    fn requests(&self, pod: &str, count: usize) -> Vec<Value> {
        wait_for(&format!("{count} requests for {pod}"), MINUTE, || {
            let selector = format!("--field-selector=spec.podName={pod}");
            let listed = self.kubectl.try_run(["get", "podcertificaterequests", &selector, "-o", "json"])?;
            let listed: Value = serde_json::from_str(&listed).unwrap();
            let all = listed["items"].as_array().unwrap().iter();
            let open: Vec<Value> = all.filter(|one| one["status"]["conditions"].as_array().is_none()).cloned().collect();
            if open.len() == count { Ok(open) } else { Err(format!("{listed:#}; {}", events(self.kubectl, pod))) }
        })
    }

    fn patch(&self, request: &Value, status: Value) {
        let patch = json!({"status": status}).to_string();
        let name = request["metadata"]["name"].as_str().unwrap();
        self.kubectl.run(["patch", "podcertificaterequest", name, "--subresource=status", "--type=merge", "-p", &patch]);
    }

    /// Signs a request; the node is to ask again after so many seconds.
    fn sign(&self, request: &Value, subject: &str, refresh_after: i64) {
        let base64 = request["spec"]["stubPKCS10Request"].as_str().unwrap();
        std::fs::write(self.folder.join("request.b64"), base64).unwrap();
        run("openssl", ["base64", "-d", "-A", "-in", &self.path("request.b64"), "-out", &self.path("request.der")]);
        // The signature proves that the node has the key.
        run("openssl", ["req", "-inform", "DER", "-in", &self.path("request.der"), "-verify", "-noout"]);
        let (ca, key) = (self.path("ca.pem"), self.path("ca.key"));
        let (request_path, out) = (self.path("request.der"), self.path("signed.pem"));
        let sign = ["x509", "-req", "-inform", "DER", "-in", &request_path, "-CA", &ca, "-CAkey", &key, "-CAcreateserial"];
        run("openssl", sign.into_iter().chain(["-days", "1", "-subj", subject, "-out", &out]));
        // What stands beside the blocks is not passed on.
        let chain = format!("about it\n{}", std::fs::read_to_string(&out).unwrap());
        let conditions = decision("Issued", "Signed", "by the test");
        self.patch(
            request,
            json!({"conditions": conditions, "certificateChain": chain, "notBefore": time(-3_600), "notAfter": time(900),
                "beginRefreshAt": time(refresh_after)}),
        );
    }
}

fn decision(kind: &str, reason: &str, message: &str) -> Value {
    json!([{"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time(0)}])
}

/// Seconds from now, as the API writes it.
fn time(seconds: i64) -> String {
    run("date", ["-u", "-d", &format!("{seconds} seconds"), "+%Y-%m-%dT%H:%M:%SZ"]).trim().to_owned()
}

fn openssl(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {input}");
    text(&output.stdout)
}

fn pod(sources: Value) -> Value {
    let mounted = with(shell("c", "sleep 1000"), json!({"volumeMounts": [{"name": "certs", "mountPath": "/certs"}]}));
    json!({"containers": [mounted], "volumes": [{"name": "certs", "projected": {"defaultMode": 0o440, "sources": sources}}]})
}

fn source(kind: &str, paths: Value) -> Value {
    json!({"podCertificate": with(paths, json!({"signerName": "example.com/s", "keyType": kind}))})
}

#[test]
fn pods_get_certificates_from_signers() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer { kubectl: &kubectl, folder: folder.path() }.with_ca();
    make(
        &kubectl,
        "app",
        pod(json!([
            source("ED25519", json!({"credentialBundlePath": "bundle.pem", "userAnnotations": {"example.com/for": "test"}})),
            source("ECDSAP384", json!({"keyPath": "key.pem", "certificateChainPath": "d/chain.pem"})),
        ])),
    );
    let requests = signer.requests("app", 2);
    let bundled = requests.iter().find(|one| one["spec"]["unverifiedUserAnnotations"].is_object()).unwrap();
    let spec = &bundled["spec"];
    assert_eq!(
        (&spec["nodeName"], &spec["maxExpirationSeconds"], &spec["serviceAccountName"], &spec["unverifiedUserAnnotations"]),
        (&json!(cluster.node), &json!(86_400), &json!("default"), &json!({"example.com/for": "test"}))
    );
    until_event(
        &kubectl,
        "app",
        "FailedMount: MountVolume.SetUp failed for volume \"certs\" : credential bundle is not issued yet",
    );
    for request in &requests {
        let is_first = request["metadata"]["name"] == bundled["metadata"]["name"];
        signer.sign(request, if is_first { "/CN=first" } else { "/CN=other" }, if is_first { 3 } else { 600 });
    }
    until_ready(&kubectl, "app");
    let read = |file: &str| pods::sh(&kubectl, "app", &format!("cat /certs/{file}"));
    let bundle = read("bundle.pem");
    assert!(bundle.starts_with("-----BEGIN PRIVATE KEY-----\n") && !bundle.contains("about it"), "{bundle}");
    let subject = |pem: &str| openssl(&["x509", "-noout", "-subject"], pem);
    assert!(subject(&bundle).contains("first"), "{}", subject(&bundle));
    for (key, chain) in [(bundle.clone(), bundle.clone()), (read("key.pem"), read("d/chain.pem"))] {
        assert_eq!(openssl(&["pkey", "-pubout"], &key), openssl(&["x509", "-noout", "-pubkey"], &chain));
        std::fs::write(folder.path().join("got.pem"), chain).unwrap();
        run("openssl", ["verify", "-CAfile", &signer.path("ca.pem"), &signer.path("got.pem")]);
    }
    assert_eq!(pods::sh(&kubectl, "app", "stat -L -c %a /certs/bundle.pem /certs/d/chain.pem"), "440\n440\n");
    // It is asked anew when the signer said; until then the old one serves.
    let next = signer.requests("app", 1).remove(0);
    assert_eq!(read("bundle.pem"), bundle);
    signer.sign(&next, "/CN=second", 600);
    wait_for("the second certificate", MINUTE, || {
        let seen = subject(&read("bundle.pem"));
        if seen.contains("second") { Ok(()) } else { Err(seen) }
    });
    // A new agent asks for new ones, and leaves what is there until it has them.
    let before = read("bundle.pem");
    cluster.kill();
    cluster.spawn();
    let again = signer.requests("app", 2);
    assert_eq!(read("bundle.pem"), before);
    again.iter().for_each(|request| signer.sign(request, "/CN=third", 600));
    wait_for("the third certificate", MINUTE, || {
        let seen = subject(&read("bundle.pem"));
        if seen.contains("third") { Ok(()) } else { Err(seen) }
    });
    kubectl.run(["delete", "pod", "app"]);
    wait_for("its requests to go with it", MINUTE, || {
        let left = kubectl.try_run(["get", "podcertificaterequests", "-o", "name"])?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
}

#[test]
fn what_is_refused_says_why() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.37");
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer { kubectl: &kubectl, folder: folder.path() };
    let bundle = || json!({"credentialBundlePath": "bundle.pem"});
    for (name, kind) in [("denied", "Denied"), ("failed", "Failed")] {
        make(&kubectl, name, pod(json!([source("ECDSAP256", bundle())])));
        let request = signer.requests(name, 1).remove(0);
        let conditions = decision(kind, "Because", "the test says \"no\"");
        signer.patch(&request, json!({"conditions": conditions}));
        let words =
            format!("PodCertificateRequest was permanently {name}: reason=\"Because\" message=\"the test says \\\"no\\\"\"");
        until_event(&kubectl, name, &format!("FailedMount: MountVolume.SetUp failed for volume \"certs\" : {words}"));
        until_event(&kubectl, name, &format!("{kind}: PodCertificateRequest default/req-"));
    }
    make(&kubectl, "rsa", pod(json!([source("RSA3072", bundle())])));
    until_event(&kubectl, "rsa", "keys of type RSA3072 are not made by this version; it makes ECDSAP256, ECDSAP384, ED25519");
    let wrong = pods::manifest("wrong", pod(json!([source("DSA", json!({}))]))).to_string();
    let refused = kubectl.manifest(&["create"], &wrong).unwrap_err();
    assert!(refused.contains("keyType: Unsupported value: \"DSA\"") && refused.contains("specify at least one of"), "{refused}");
    nodes_see_their_own(&cluster, &kubectl);
}

/// What a node may do with requests, asked as that node.
fn nodes_see_their_own(cluster: &Cluster, kubectl: &Kubectl) {
    let name = kubectl.jsonpath(&["podcertificaterequests"], "{.items[0].metadata.name}");
    let as_node = |node: &str, arguments: &[&str]| {
        let user = format!("--as=system:node:{node}");
        let all = arguments.iter().copied().chain([user.as_str(), "--as-group=system:nodes"]);
        kubectl.try_run(all).map_err(|error| error.trim().to_owned())
    };
    let own = format!("--field-selector=spec.nodeName={}", cluster.node);
    assert!(as_node(&cluster.node, &["get", "podcertificaterequests", "-A", &own]).unwrap().contains("Denied"));
    assert!(as_node(&cluster.node, &["get", "podcertificaterequest", &name]).is_ok());
    for (node, arguments) in [
        (cluster.node.as_str(), &["get", "podcertificaterequests", "-A"][..]),
        ("other", &["get", "podcertificaterequests", "-A", &own]),
        ("other", &["get", "podcertificaterequest", &name]),
        (&cluster.node, &["delete", "podcertificaterequest", &name]),
        (
            &cluster.node,
            &["patch", "podcertificaterequest", &name, "--subresource=status", "--type=merge", "-p", "{\"status\": {}}"],
        ),
    ] {
        let refused = as_node(node, arguments).unwrap_err();
        assert!(refused.contains("Forbidden") || refused.contains("forbidden"), "{arguments:?}: {refused}");
    }
    let mut copy: Value = serde_json::from_str(&kubectl.run(["get", "podcertificaterequest", &name, "-o", "json"])).unwrap();
    copy["metadata"] = json!({"generateName": "copy-", "namespace": "default"});
    copy["spec"]["podUID"] = json!("another");
    let user = format!("--as=system:node:{}", cluster.node);
    let refused = kubectl.manifest(&["create", &user, "--as-group=system:nodes"], &copy.to_string()).unwrap_err();
    assert!(refused.contains("contains podUID (\"another\") which differs"), "{refused}");
}
