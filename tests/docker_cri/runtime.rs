//! `cri::docker` over a real engine.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use orch::cri::docker::{DEFAULT_SOCKET, Docker, DockerConfig};
use orch::cri::{
    ContainerSpec, DeviceRequest, EventStream, ExecSession, ExecSpec, Mount, Propagation, Resources, Runtime, RuntimeError,
    RuntimeEvent, SandboxSpec, State, labels,
};
use orch::rt::random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(60);

/// A pod on the engine that is removed with the test, whatever its outcome.
pub struct Pod {
    pub docker: Docker,
    pub owner: String,
    pub uid: String,
    pub sandbox: String,
}

impl Pod {
    pub async fn start() -> Self {
        let pod = Self::create().await;
        pod.docker.start(&pod.sandbox).await.unwrap();
        pod
    }

    pub async fn create() -> Self {
        let owner = format!("test-{}", random::suffix(8));
        let docker = Docker::connect(DockerConfig { host: DEFAULT_SOCKET.to_owned(), owner: owner.clone() }).unwrap();
        let uid = random::uid();
        let spec = SandboxSpec {
            name: format!("k8s_POD_{uid}"),
            hostname: "web-0".to_owned(),
            labels: BTreeMap::from([(labels::OWNER.to_owned(), owner.clone()), (labels::POD_UID.to_owned(), uid.clone())]),
            sysctls: BTreeMap::from([("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned())]),
            ..SandboxSpec::default()
        };
        let sandbox = docker.create_sandbox(&spec).await.unwrap();
        assert_eq!(docker.create_sandbox(&spec).await.unwrap(), sandbox, "idempotent by name");
        Self { docker, owner, uid, sandbox }
    }

    pub fn container(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: format!("k8s_{name}_{}", self.uid),
            image: "busybox:latest".to_owned(),
            command: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
            labels: BTreeMap::from([
                (labels::OWNER.to_owned(), self.owner.clone()),
                (labels::CONTAINER_NAME.to_owned(), name.to_owned()),
            ]),
            sandbox_id: self.sandbox.clone(),
            log_max_bytes: 10 << 20,
            log_max_files: 3,
            ..ContainerSpec::default()
        }
    }

    pub async fn run(&self, spec: &ContainerSpec) -> String {
        let id = self.docker.create_container(spec).await.unwrap();
        self.docker.start(&id).await.unwrap();
        id
    }

    pub async fn shell(&self, id: &str, script: &str) -> (i32, String) {
        let spec = ExecSpec { command: sh(script), stdout: true, stderr: true, ..ExecSpec::default() };
        let session = self.docker.exec(id, &spec).await.unwrap();
        let (code, out, err) = finish(session).await;
        (code, out + &err)
    }

    async fn wait_exit(&self, id: &str) -> orch::cri::ContainerDetail {
        let waiting = async {
            loop {
                let detail = self.docker.inspect(id).await.unwrap();
                if detail.state == State::Exited {
                    return detail;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap()
    }

    pub async fn remove(self) {
        for container in self.docker.list().await.unwrap() {
            self.docker.remove(&container.id).await.unwrap();
            self.docker.remove(&container.id).await.unwrap();
        }
        assert!(self.docker.list().await.unwrap().is_empty());
    }
}

fn sh(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

async fn finish(session: ExecSession) -> (i32, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read_out = async { session.stdout.unwrap().read_to_end(&mut out).await };
    let stderr = session.stderr;
    let read_err = async {
        if let Some(mut stderr) = stderr {
            stderr.read_to_end(&mut err).await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, async { tokio::join!(read_out, read_err) }).await.unwrap().0.unwrap();
    let code = session.control.exit_code().await.unwrap();
    (code, String::from_utf8_lossy(&out).into_owned(), String::from_utf8_lossy(&err).into_owned())
}

async fn next(events: &mut EventStream) -> RuntimeEvent {
    tokio::time::timeout(DEADLINE, events.next()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tells_what_engine_it_is() {
    let pod = Pod::create().await;
    let info = pod.docker.info().await.unwrap();
    assert_eq!(info.name, "docker");
    assert!(!info.version.is_empty() && !info.api_version.is_empty() && !info.kernel_version.is_empty(), "{info:?}");
    assert!(info.root_dir.is_absolute());
    pod.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_in_its_sandbox() {
    let pod = Pod::create().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("greeting"), "hello").unwrap();
    let mut spec = pod.container("main", "cat /data/greeting; echo $NAME >&2; hostname; exit 7");
    spec.env = vec!["NAME=value".to_owned()];
    spec.resources = Resources { memory_bytes: Some(64 << 20), cpu_shares: Some(102), ..Resources::default() };
    spec.oom_score_adj = Some(-100);
    spec.mounts = vec![Mount {
        host_path: dir.path().to_owned(),
        container_path: "/data".to_owned(),
        read_only: true,
        recursive_read_only: false,
        propagation: Propagation::Private,
    }];
    // Created before the sandbox runs, started after.
    let id = pod.docker.create_container(&spec).await.unwrap();
    assert_eq!(pod.docker.inspect(&id).await.unwrap().state, State::Created);
    pod.docker.start(&pod.sandbox).await.unwrap();
    pod.docker.start(&pod.sandbox).await.unwrap();
    pod.docker.start(&id).await.unwrap();
    let detail = pod.wait_exit(&id).await;
    assert_eq!((detail.exit_code, detail.oom_killed, detail.pid), (7, false, None));
    assert!(detail.started_at <= detail.finished_at, "{detail:?}");
    assert!(detail.image_id.starts_with("sha256:"), "{detail:?}");
    let log = std::fs::read_to_string(detail.log_path.unwrap()).unwrap();
    for words in ["hello", "value", "web-0"] {
        assert!(log.contains(words), "{log}");
    }
    let list = pod.docker.list().await.unwrap();
    let mut states: Vec<State> = list.iter().map(|container| container.state).collect();
    states.sort_by_key(|state| *state as u8);
    assert_eq!(states, [State::Running, State::Exited]);

    // The same name with other labels is another container: the old one is in the way.
    spec.labels.insert(labels::SPEC_HASH.to_owned(), "2".to_owned());
    let second = pod.docker.create_container(&spec).await.unwrap();
    assert_ne!(second, id);
    assert!(matches!(pod.docker.inspect(&id).await, Err(RuntimeError::NotFound(_))));
    pod.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_in_dockers_words() {
    let pod = Pod::start().await;
    let mut spec = pod.container("main", "");
    spec.image = "no-such-image:1".to_owned();
    let error = pod.docker.create_container(&spec).await.unwrap_err();
    assert_eq!(error, RuntimeError::NotFound("No such image: no-such-image:1".to_owned()));
    let mut spec = pod.container("main", "");
    spec.command = Some(vec!["/no/such/program".to_owned()]);
    let id = pod.docker.create_container(&spec).await.unwrap();
    let error = pod.docker.start(&id).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    let detail = pod.docker.inspect(&id).await.unwrap();
    assert_eq!((detail.state, detail.exit_code), (State::Created, 127));
    assert!(detail.error.contains("/no/such/program"));
    let error = pod.docker.exec(&id, &ExecSpec { command: sh("true"), ..ExecSpec::default() }).await.err().unwrap();
    assert!(error.to_string().contains("is not running"), "{error}");
    let mut spec = pod.container("gpu", "");
    // What `nvidia.com/gpu: 1` asks of the engine; without NVIDIA's runtime it says that it has no such driver.
    spec.devices = vec![DeviceRequest { driver: "nvidia".to_owned(), count: 1, capabilities: vec!["gpu".to_owned()] }];
    let id = pod.docker.create_container(&spec).await.unwrap();
    let error = pod.docker.start(&id).await.unwrap_err();
    assert!(error.to_string().contains("could not select device driver \"nvidia\" with capabilities: [[gpu]]"), "{error}");
    let error = pod.docker.pull("localhost:1/none:2", None, &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("localhost:1"), "{error}");
    assert_eq!(pod.docker.image("no-such-image:1").await, Ok(None));
    assert!(pod.docker.image("busybox:latest").await.unwrap().is_some());
    assert!(pod.docker.images().await.unwrap().iter().any(|image| image.tags.iter().any(|tag| tag == "busybox:latest")));
    pod.remove().await;

    let nowhere = Docker::connect(DockerConfig { host: "unix:///no/such.sock".to_owned(), owner: String::new() }).unwrap();
    let error = nowhere.info().await.unwrap_err();
    assert!(error.to_string().starts_with("cannot reach Docker at /no/such.sock: "), "{error}");
    assert!(matches!(next(&mut nowhere.events()).await, RuntimeEvent::Down(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_passes_streams_and_exit_codes() {
    let pod = Pod::start().await;
    let id = pod.run(&pod.container("main", "trap 'exit 0' TERM; while :; do sleep 1; done")).await;
    let spec = ExecSpec { command: sh("cat; echo oops >&2; exit 42"), stdin: true, stdout: true, stderr: true, tty: false };
    let mut session = pod.docker.exec(&id, &spec).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let sent = vec![b'x'; 300_000];
    let writing = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let ((code, out, err), ()) = tokio::join!(finish(session), writing);
    assert_eq!((code, out.len(), err.as_str()), (42, 300_000, "oops\n"));
    assert_eq!(pod.shell(&id, "echo a; echo b >&2; kill -9 $$").await.0, 137);

    // A terminal: bytes that look like frames pass, and the size is what was set.
    let spec = ExecSpec {
        command: sh("printf '\\001\\000\\002frame\\n'; read line; stty size; echo got $line; exit 3"),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: true,
    };
    let mut session = pod.docker.exec(&id, &spec).await.unwrap();
    assert!(session.stderr.is_none());
    session.control.resize(101, 37).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"line\n").await.unwrap();
    let (code, out, _) = finish(session).await;
    assert_eq!(code, 3);
    assert!(out.contains("\u{1}\u{0}\u{2}frame") && out.contains("37 101") && out.contains("got line"), "{out:?}");

    let started = std::time::Instant::now();
    pod.docker.stop(&id, Duration::from_secs(30)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "it handles SIGTERM");
    assert_eq!(pod.wait_exit(&id).await.exit_code, 0);
    pod.docker.stop(&id, Duration::ZERO).await.unwrap();
    pod.docker.stop("no-such-container", Duration::ZERO).await.unwrap();
    pod.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attach_reaches_the_first_process() {
    let pod = Pod::start().await;
    for tty in [false, true] {
        let mut spec = pod.container(if tty { "tty" } else { "raw" }, "read line; echo got $line; exit 5");
        (spec.stdin, spec.stdin_once, spec.tty) = (true, true, tty);
        let id = pod.run(&spec).await;
        let spec = ExecSpec { stdin: true, stdout: true, stderr: true, tty, ..ExecSpec::default() };
        let mut session = pod.docker.attach(&id, &spec).await.unwrap();
        session.stdin.as_mut().unwrap().write_all(b"word\n").await.unwrap();
        let (code, out, _) = finish(session).await;
        assert!(out.contains("got word"), "{out:?}");
        assert_eq!(pod.wait_exit(&id).await.exit_code, 5);
        assert!(code == 5 || code == 0);
    }
    pod.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_of_own_containers_only() {
    let other = Pod::create().await;
    let pod = Pod::create().await;
    let mut events = pod.docker.events();
    assert_eq!(next(&mut events).await, RuntimeEvent::Resync);
    other.docker.start(&other.sandbox).await.unwrap();
    pod.docker.start(&pod.sandbox).await.unwrap();
    let id = pod.run(&pod.container("main", "exit 1")).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        if let RuntimeEvent::Container { id, labels, action } = next(&mut events).await {
            assert_eq!(labels.get(labels::OWNER).map(String::as_str), Some(pod.owner.as_str()));
            seen.push((id, action));
        }
    }
    let expected = [(&pod.sandbox, "start"), (&id, "create"), (&id, "start"), (&id, "die")];
    assert_eq!(seen, expected.map(|(id, action)| (id.clone(), action.to_owned())));
    other.remove().await;
    pod.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_reap_and_share_processes() {
    let pod = Pod::start().await;
    let mut spec = pod.container("main", "sleep 1000");
    spec.share_pid = true;
    let id = pod.run(&spec).await;
    // The orphan becomes a child of the pause process, which must reap it.
    let (code, out) = pod.shell(&id, "(sleep 0.2 &) ; sleep 1; ps -o pid,stat,comm").await;
    assert_eq!(code, 0);
    assert!(out.contains("pause") && !out.contains('Z'), "{out}");
    let pid = pod.docker.inspect(&pod.sandbox).await.unwrap().pid.unwrap();
    assert!(std::path::Path::new(&format!("/proc/{pid}/ns/net")).exists());
    pod.docker.update(&id, &Resources { memory_bytes: Some(96 << 20), ..Resources::default() }).await.unwrap();
    let started = std::time::Instant::now();
    pod.docker.stop(&pod.sandbox, Duration::from_secs(30)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "the pause program ends on SIGTERM");
    assert_eq!(pod.wait_exit(&pod.sandbox).await.exit_code, 0);
    pod.remove().await;
}
