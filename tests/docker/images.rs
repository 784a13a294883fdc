//! Images from a real registry: credentials, mirrors, tarballs in a folder, and `orch image`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Cluster, Kubectl, curl, docker, free_port, run, text, wait_for};

const MINUTE: Duration = Duration::from_secs(60);
const USER: &str = "me";
const PASSWORD: &str = "se:cret";

/// Debian's `docker-registry` on loopback, where Docker needs no TLS.
struct Registry {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    fn start(has_login: bool) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let at = |name: &str| folder.path().join(name);
        let login = if has_login {
            let users = run("htpasswd", ["-nbB", USER, PASSWORD]);
            fs::write(at("users"), users.trim()).unwrap();
            format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", at("users").display())
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n{login}",
            at("data").display()
        );
        fs::write(at("config.yml"), config).unwrap();
        let log = File::create(at("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(at("config.yml")).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().expect("docker-registry is installed by tests/run");
        wait_for("the registry", MINUTE, || curl(&format!("http://127.0.0.1:{port}/v2/")).map(drop));
        Self { port, child, _folder: folder }
    }

    fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// By what the image is known that a tag means now.
    fn digest(&self, image: &str, tag: &str) -> String {
        let url = format!("http://{}/v2/{image}/manifests/{tag}", self.name("").trim_end_matches('/'));
        let head = run("curl", ["-sI", "-H", "Accept: application/vnd.docker.distribution.manifest.v2+json", &url]);
        let line = head.lines().find_map(|line| line.to_lowercase().strip_prefix("docker-content-digest: ").map(str::to_owned));
        line.expect("a digest").trim().to_owned()
    }

    /// Pushes a copy of busybox, and leaves no trace of it in the engine.
    fn push(&self, image: &str, config: &Path) {
        let name = self.name(image);
        docker(["tag", "busybox:latest", &name]);
        run("docker", ["--config", config.to_str().unwrap(), "push", "-q", &name]);
        docker(["rmi", &name]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn pod(name: &str, image: &str, secret: Option<&str>) -> String {
    let secrets = secret.map_or_else(String::new, |secret| format!("\n  imagePullSecrets: [{{name: {secret}}}]"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0{secrets}\n  containers:\n  \
         - {{name: main, image: \"{image}\", command: [sleep, \"100000\"]}}\n"
    )
}

fn becomes_ready(kubectl: &Kubectl, name: &str) {
    kubectl.run(["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

fn waits_for(kubectl: &Kubectl, name: &str, words: &str) {
    wait_for("the pull to fail", MINUTE, || {
        let waiting = kubectl.jsonpath(&["pod", name], "{.status.containerStatuses[0].state.waiting}");
        if waiting.contains(words) { Ok(()) } else { Err(waiting) }
    });
}

fn orch(cluster: &Cluster, arguments: &[&str]) -> String {
    let data = cluster.folder.path().join("data");
    let output =
        Command::new(env!("CARGO_BIN_EXE_orch")).arg("image").arg("--data-dir").arg(data).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn images_of_registries_mirrors_and_folders() {
    let (open, closed) = (Registry::start(false), Registry::start(true));
    let folder = tempfile::tempdir().unwrap();
    let login = ["--config", folder.path().to_str().unwrap(), "login", "-u", USER, "-p", PASSWORD, &closed.name("")];
    run("docker", login);
    open.push("team/app:1", folder.path());
    closed.push("private/app:1", folder.path());
    let registries = folder.path().join("registries.yaml");
    let mirror = format!("mirrors: {{registry.invalid: {{endpoint: [\"http://127.0.0.1:{}\"]}}}}\n", open.port);
    fs::write(&registries, mirror).unwrap();

    let cluster = Cluster::start_with(&[&format!("--private-registry={}", registries.display())]);
    cluster.wait_ready();
    let kubectl = cluster.kubectl("1.33");
    wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
    let apply = |manifest: &str| kubectl.manifest(&["apply"], manifest).unwrap();

    apply(&pod("mirrored", "registry.invalid/team/app:1", None));
    becomes_ready(&kubectl, "mirrored");
    let digest = open.digest("team/app", "1");
    apply(&pod("exact", &open.name(&format!("team/app@{digest}")), None));
    becomes_ready(&kubectl, "exact");
    let id = kubectl.jsonpath(&["pod", "exact"], "{.status.containerStatuses[0].imageID}");
    assert_eq!(id, format!("docker-pullable://{}@{digest}", open.name("team/app")));
    let other = digest.replace(&digest[7..15], "00000000");
    apply(&pod("other", &open.name(&format!("team/app@{other}")), None));
    waits_for(&kubectl, "other", "manifest unknown");
    apply(&pod("stranger", &closed.name("private/app:1"), None));
    waits_for(&kubectl, "stranger", "no basic auth credentials");
    let server = closed.name("");
    kubectl.run([
        "create",
        "secret",
        "docker-registry",
        "login",
        "--docker-server",
        &server,
        "--docker-username",
        USER,
        "--docker-password",
        PASSWORD,
    ]);
    apply(&pod("friend", &closed.name("private/app:1"), Some("login")));
    becomes_ready(&kubectl, "friend");
    assert!(kubectl.run(["describe", "pod", "friend"]).contains("Successfully pulled image"));
    apply(&pod("missing", &open.name("team/app:2"), None));
    waits_for(&kubectl, "missing", "manifest unknown");

    let tarball = folder.path().join("preloaded.tar");
    let name = format!("preloaded-{}:1", cluster.node);
    docker(["tag", "busybox:latest", &name]);
    docker(["save", "-o", tarball.to_str().unwrap(), &name]);
    docker(["rmi", &name]);
    let images = cluster.folder.path().join("data/agent/images");
    fs::copy(&tarball, images.join(".part")).unwrap();
    fs::rename(images.join(".part"), images.join("preloaded.tar")).unwrap();
    apply(&pod("preloaded", &name, None).replace("command:", "imagePullPolicy: Never, command:"));
    becomes_ready(&kubectl, "preloaded");

    kubectl.run(["delete", "pod", "--all", "--wait"]);
    wait_for("no container to be left", MINUTE, || if cluster.containers().is_empty() { Ok(()) } else { Err("some".to_owned()) });
    assert!(orch(&cluster, &["ls"]).contains(&name.replace(":1", "")));
    assert!(orch(&cluster, &["rm", &name]).contains("removed"));
    assert!(orch(&cluster, &["load", tarball.to_str().unwrap()]).contains(&name));
    docker(["rmi", &name]);
    // What was pulled goes, what was there before stays.
    orch(&cluster, &["prune"]);
    let left = docker(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert!(!left.contains("registry.invalid") && !left.contains("private/app") && left.contains("busybox:latest"), "{left}");
}

/// Passes on what a registry says, 100 kB a second.
fn slowly(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map(Result::unwrap) {
            let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let (asks, answers) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
            std::thread::spawn(move || drop(std::io::copy(&mut &asks.0, &mut &asks.1)));
            std::thread::spawn(move || {
                let mut bytes = [0; 10_000];
                while let Ok(count) = (&answers.0).read(&mut bytes)
                    && count > 0
                    && (&answers.1).write_all(&bytes[..count]).is_ok()
                {
                    std::thread::park_timeout(Duration::from_millis(100));
                }
            });
        }
    });
    port
}

#[test]
fn a_pull_that_takes_long_is_told_of() {
    let registry = Registry::start(false);
    let folder = tempfile::tempdir().unwrap();
    // A layer that the engine does not have, and that does not get smaller.
    let mut noise = vec![0; 1_600_000];
    File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::write(folder.path().join("noise"), noise).unwrap();
    let name = registry.name("big/app:1");
    let make = format!(
        "tar -C {} -c noise | docker import - {name} && docker push -q {name} && docker rmi {name}",
        folder.path().display()
    );
    run("sh", ["-c", &make]);
    let slow = format!("127.0.0.1:{}/big/app:1", slowly(registry.port));
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
    kubectl.manifest(&["apply"], &pod("slow", &slow, None)).unwrap();
    wait_for("news of the pull", MINUTE, || {
        let seen = crate::pods::events(&kubectl, "slow");
        let news = format!("Pulling: Pulling image \"{slow}\": 0 of 1 layers, ");
        let line = seen.lines().find(|line| line.starts_with(&news) && line.ends_with(" of 1.6 MB"));
        line.map(|_| ()).ok_or(seen)
    });
    wait_for("the pull to end", MINUTE, || {
        let seen = crate::pods::events(&kubectl, "slow");
        if seen.contains("Successfully pulled image") { Ok(()) } else { Err(seen) }
    });
    kubectl.run(["delete", "pod", "slow"]);
    docker(["rmi", &slow]);
}

/// The disk counts as full from the start: what was pulled goes when nobody uses it, and what was there before stays.
#[test]
fn unused_images_go_when_the_disk_is_full() {
    let registry = Registry::start(false);
    let folder = tempfile::tempdir().unwrap();
    registry.push("kept/app:1", folder.path());
    registry.push("unused/app:1", folder.path());
    let flags = ["--image-gc-high-threshold=1", "--image-gc-low-threshold=0", "--minimum-image-ttl-duration=1s"];
    let cluster = Cluster::start_with(&flags);
    cluster.wait_ready();
    let kubectl = cluster.kubectl("1.33");
    wait_for("the service account", MINUTE, || kubectl.try_run(["get", "serviceaccount", "default"]));
    for name in ["kept", "unused"] {
        kubectl.manifest(&["apply"], &pod(name, &registry.name(&format!("{name}/app:1")), None)).unwrap();
        becomes_ready(&kubectl, name);
    }
    kubectl.run(["delete", "pod", "unused"]);
    let port = format!(":{}/", registry.port);
    let pulled = || {
        let all = docker(["images", "--format", "{{.Repository}}:{{.Tag}}"]);
        all.lines().filter(|line| line.contains(&port)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(pulled().len(), 2, "nothing goes at once");
    wait_for("the unused image to go", MINUTE * 3, || {
        let left = pulled();
        if left == [registry.name("kept/app:1")] { Ok(()) } else { Err(format!("{left:?}")) }
    });
    // It can't free as much as it should, and says so.
    wait_for("the node to say what it could not free", MINUTE, || {
        let seen =
            kubectl.run(["get", "events", "-A", "--field-selector=reason=ImageGCFailed", "-o", "jsonpath={.items[*].message}"]);
        if seen.contains("Failed to garbage collect required amount of images") { Ok(()) } else { Err(seen) }
    });
    kubectl.run(["delete", "pod", "kept"]);
    docker(["rmi", &registry.name("kept/app:1")]);
    assert!(docker(["images", "-q", "busybox:latest"]).len() > 1);
}
