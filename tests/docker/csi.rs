//! A CSI driver of the test's own, spoken to as real ones are: over gRPC on sockets below `plugins_registry`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Cluster, wait_for};

const MINUTE: Duration = Duration::from_secs(60);
const NAME: &str = "test.csi.orch.io";

/// The texts and maps of a message by their tags: enough for what the driver is asked.
fn decode(mut rest: &[u8]) -> BTreeMap<u64, Vec<Vec<u8>>> {
    let mut fields: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let varint = |rest: &mut &[u8]| {
        let (mut value, mut shift) = (0_u64, 0);
        loop {
            let byte = rest[0];
            *rest = &rest[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    while !rest.is_empty() {
        let head = varint(&mut rest);
        let value = match head & 7 {
            0 => varint(&mut rest).to_le_bytes().to_vec(),
            2 => {
                let length = usize::try_from(varint(&mut rest)).unwrap();
                let (taken, after) = rest.split_at(length);
                rest = after;
                taken.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        fields.entry(head >> 3).or_default().push(value);
    }
    fields
}

fn text(message: &BTreeMap<u64, Vec<Vec<u8>>>, tag: u64) -> String {
    message.get(&tag).map_or_else(String::new, |values| String::from_utf8(values[0].clone()).unwrap())
}

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

struct Driver {
    folder: PathBuf,
    socket: PathBuf,
    calls: Mutex<Vec<String>>,
}

impl Driver {
    /// Answers a call; an error is a status of the driver.
    fn answer(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let message = decode(message);
        let name = method.rsplit('/').next().unwrap().to_owned();
        self.calls.lock().unwrap().push(name.clone());
        match name.as_str() {
            "GetInfo" => {
                let parts =
                    [field(1, b"CSIPlugin"), field(2, NAME.as_bytes()), field(3, self.socket.to_str().unwrap().as_bytes())];
                Ok(parts.concat())
            }
            "NotifyRegistrationStatus" => Ok(Vec::new()),
            "NodeGetInfo" => {
                let topology = field(1, &[field(1, b"rack"), field(2, b"r1")].concat());
                Ok([field(1, b"node-id"), vec![0x10, 7], field(3, &topology)].concat())
            }
            // STAGE_UNSTAGE_VOLUME and EXPAND_VOLUME
            "NodeGetCapabilities" => Ok([field(1, &field(1, &[0x08, 1])), field(1, &field(1, &[0x08, 3]))].concat()),
            "NodeExpandVolume" => {
                let size = decode(&message[&3][0])[&1][0].clone();
                fs::write(
                    self.folder.join(text(&message, 1)).join("size"),
                    u64::from_le_bytes(size.try_into().unwrap()).to_string(),
                )
                .unwrap();
                Ok(Vec::new())
            }
            "NodeStageVolume" => {
                let data = self.folder.join(text(&message, 1));
                fs::create_dir_all(&data).unwrap();
                let staging = text(&message, 3);
                if !mounted(&staging) {
                    run("mount", &["--bind", data.to_str().unwrap(), &staging]);
                }
                Ok(Vec::new())
            }
            "NodePublishVolume" => {
                let context: Vec<String> = message[&8]
                    .iter()
                    .map(|entry| {
                        let entry = decode(entry);
                        format!("{}={}", text(&entry, 1), text(&entry, 2))
                    })
                    .collect();
                let (staging, target) = (text(&message, 3), text(&message, 4));
                fs::write(Path::new(&staging).join("context"), context.join("\n")).unwrap();
                fs::create_dir_all(&target).unwrap();
                if !mounted(&target) {
                    run("mount", &["--bind", &staging, &target]);
                }
                Ok(Vec::new())
            }
            "NodeUnpublishVolume" => self.unmount(&text(&message, 2)),
            "NodeUnstageVolume" => {
                let staging = text(&message, 2);
                if mounted(&staging) {
                    run("umount", &[&staging]);
                }
                Ok(Vec::new())
            }
            other => Err(other.to_owned()),
        }
    }

    fn unmount(&self, target: &str) -> Result<Vec<u8>, String> {
        if mounted(target) {
            run("umount", &[target]);
        }
        if Path::new(target).exists() {
            fs::remove_dir(target).unwrap();
        }
        Ok(Vec::new())
    }

    async fn serve(self: Arc<Self>, socket: PathBuf) {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let driver = Arc::clone(&self);
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let driver = Arc::clone(&driver);
                    async move {
                        let method = request.uri().path().to_owned();
                        let body = request.into_body().collect().await?.to_bytes();
                        let answer = tokio::task::spawn_blocking(move || driver.answer(&method, &body[5..])).await.unwrap();
                        let mut trailers = HeaderMap::new();
                        let mut frames = Vec::new();
                        match answer {
                            Ok(message) => {
                                let mut frame = vec![0];
                                frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
                                frame.extend(message);
                                frames.push(Ok::<_, hyper::Error>(Frame::data(Bytes::from(frame))));
                                trailers.insert("grpc-status", "0".parse().unwrap());
                            }
                            Err(_) => drop(trailers.insert("grpc-status", "12".parse().unwrap())),
                        }
                        frames.push(Ok(Frame::trailers(trailers)));
                        let body = StreamBody::new(futures_util::stream::iter(frames));
                        Ok::<_, hyper::Error>(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
                    }
                });
                let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }
}

fn mounted(path: &str) -> bool {
    fs::read_to_string("/proc/self/mounts").unwrap().lines().any(|line| line.split(' ').nth(1) == Some(path))
}

#[test]
fn a_driver_registers_attaches_stages_and_publishes() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let registry = cluster.folder.path().join("data/agent/plugins_registry");
    wait_for("the registry", MINUTE, || if registry.is_dir() { Ok(()) } else { Err(String::new()) });
    let driver = Arc::new(Driver {
        folder: cluster.folder.path().join("volumes"),
        socket: cluster.folder.path().join("csi.sock"),
        calls: Mutex::default(),
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.spawn(Arc::clone(&driver).serve(driver.socket.clone()));
    runtime.spawn(Arc::clone(&driver).serve(registry.join("test-reg.sock")));
    wait_for("the driver in the CSINode", MINUTE, || {
        let path = "{.spec.drivers[0].name} {.spec.drivers[0].nodeID} {.spec.drivers[0].allocatable.count} {.spec.drivers[0].topologyKeys}";
        let seen = kubectl.try_run(["get", "csinode", &cluster.node, "-o", &format!("jsonpath={path}")])?;
        if seen == format!("{NAME} node-id 7 [\"rack\"]") { Ok(()) } else { Err(seen) }
    });
    let objects = format!(
        "{{apiVersion: v1, kind: List, items: [\
         {{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {{name: {NAME}}}, spec: {{attachRequired: true, podInfoOnMount: true}}}}, \
         {{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: csi}}, provisioner: {NAME}, allowVolumeExpansion: true}}, \
         {{apiVersion: v1, kind: PersistentVolume, metadata: {{name: vol}}, spec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], \
           storageClassName: csi, csi: {{driver: {NAME}, volumeHandle: vol-1, volumeAttributes: {{tier: gold}}}}}}}}, \
         {{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: data}}, spec: {{storageClassName: csi, accessModes: [ReadWriteOnce], \
           resources: {{requests: {{storage: 1Gi}}}}}}}}, \
         {{apiVersion: v1, kind: Pod, metadata: {{name: app}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: c, image: busybox, \
           imagePullPolicy: Never, command: [sleep, '3600'], volumeMounts: [{{name: data, mountPath: /data}}]}}], \
           volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]}}}}]}}"
    );
    kubectl.manifest(&["apply"], &objects).unwrap();
    // The test is the driver's attacher.
    let attachment = wait_for("a VolumeAttachment", MINUTE, || {
        let seen = kubectl.try_run(["get", "volumeattachments", "-o", "jsonpath={.items[*].metadata.name}"])?;
        if seen.starts_with("csi-") { Ok(seen) } else { Err(seen) }
    });
    kubectl.run([
        "patch",
        "volumeattachment",
        &attachment,
        "--subresource=status",
        "--type=merge",
        "-p",
        "{\"status\": {\"attached\": true}}",
    ]);
    kubectl.run(["wait", "--for=condition=Ready", "pod/app", "--timeout=60s"]);
    let context = kubectl.run(["exec", "app", "--", "cat", "/data/context"]);
    assert!(context.contains("tier=gold") && context.contains("csi.storage.k8s.io/pod.name=app"), "{context}");
    kubectl.run(["exec", "app", "--", "sh", "-c", "echo x > /data/file"]);
    assert_eq!(fs::read_to_string(driver.folder.join("vol-1/file")).unwrap(), "x\n");
    // It grows while the pod runs: the test is the driver's resizer, the node does its part.
    kubectl.run(["patch", "pvc", "data", "-p", "{\"spec\": {\"resources\": {\"requests\": {\"storage\": \"2Gi\"}}}}"]);
    wait_for("the driver's resizer to be asked", MINUTE, || {
        let seen = kubectl.run(["get", "events", "-o", "jsonpath={.items[*].reason}"]);
        if seen.contains("ExternalExpanding") { Ok(()) } else { Err(seen) }
    });
    kubectl.run(["patch", "pv", "vol", "-p", "{\"spec\": {\"capacity\": {\"storage\": \"2Gi\"}}}"]);
    let pending = "{\"status\": {\"conditions\": [{\"type\": \"FileSystemResizePending\", \"status\": \"True\"}]}}";
    kubectl.run(["patch", "pvc", "data", "--subresource=status", "--type=merge", "-p", pending]);
    wait_for("the claim to have grown", MINUTE, || {
        let seen = kubectl.jsonpath(&["pvc", "data"], "{.status.capacity.storage} {.status.conditions}");
        if seen.trim() == "2Gi" { Ok(()) } else { Err(seen) }
    });
    assert_eq!(fs::read_to_string(driver.folder.join("vol-1/size")).unwrap(), (2_u64 << 30).to_string());
    kubectl.run(["delete", "pod", "app"]);
    wait_for("the volume to be detached", MINUTE, || match kubectl.try_run(["get", "volumeattachments", "-o", "name"])? {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    });
    let calls = driver.calls.lock().unwrap().clone();
    let order: Vec<&String> = calls.iter().filter(|call| call.starts_with("Node") && call.ends_with("Volume")).collect();
    assert_eq!(order, ["NodeStageVolume", "NodePublishVolume", "NodeExpandVolume", "NodeUnpublishVolume", "NodeUnstageVolume"]);
    let ours = cluster.folder.path().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.lines().any(|line| line.contains(&ours)), "{mounts}");
}
