//! Whole lives of pods over the fake runtime, a network of numbers and an API server that knows one pod.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ::http::{Method, Response};
use async_trait::async_trait;
use futures_util::StreamExt;
use http_body_util::BodyExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

use super::context::{Context, EventSink, NodeOffer, SandboxNetwork};
use super::fields::Allocatable;
use super::mailbox::Mailbox;
use super::worker::Worker;
use crate::agent::Pods;
use crate::agent::image::Images;
use crate::agent::image::registries::Registries;
use crate::agent::probe::Prober;
use crate::agent::sources::Sources;
use crate::agent::volume::Volumes;
use crate::api::patch::strategic;
use crate::api::schema;
use crate::client::informer::{Informer, Informers, Scope};
use crate::client::{Client, Transport};
use crate::cri::fake::{Call, Fake};
use crate::cri::{CgroupDriver, RuntimeEvent, State};
use crate::http::{BoxError, HttpRequest, HttpResponse, full};
use crate::network::{NetworkError, PodAddress};
use crate::rt::TaskGroup;
use crate::rt::clock::FakeClock;

/// An API server with one pod; everything else is an empty list.
struct Api {
    pod: Mutex<Value>,
    revision: Mutex<u64>,
    deleted: Mutex<bool>,
    mailbox: Arc<Mailbox>,
}

impl Api {
    fn change(&self, change: impl FnOnce(&mut Value)) -> Value {
        let mut revision = self.revision.lock();
        *revision += 1;
        let mut pod = self.pod.lock();
        change(&mut pod);
        pod["metadata"]["resourceVersion"] = json!(revision.to_string());
        let typed: Pod = serde_json::from_value(pod.clone()).unwrap();
        self.mailbox.tell(|letters| letters.pod = Some(Arc::new(typed)));
        pod.clone()
    }
}

#[async_trait]
impl Transport for Api {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        if parts.uri.query().is_some_and(|query| query.contains("watch=")) {
            std::future::pending::<()>().await;
        }
        let answer = match parts.method {
            Method::PATCH => {
                let patch: Value = serde_json::from_slice(&body)?;
                let pod_type = schema::get("io.k8s.api.core.v1.Pod").unwrap();
                self.change(|pod| *pod = strategic::apply(pod.take(), patch, pod_type).unwrap())
            }
            Method::DELETE => {
                *self.deleted.lock() = true;
                self.mailbox.tell(|letters| letters.is_gone = true);
                json!({"kind": "Status", "status": "Success"})
            }
            _ => json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}),
        };
        Ok(Response::new(full(answer.to_string())))
    }
}

struct Network;

#[async_trait]
impl SandboxNetwork for Network {
    async fn attach(&self, _: &Pod, _: u32) -> Result<PodAddress, NetworkError> {
        Ok(PodAddress { ip: Ipv4Addr::new(10, 42, 0, 2) })
    }

    async fn detach(&self, _: &str) -> Result<(), NetworkError> {
        Ok(())
    }
}

#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl EventSink for Events {
    fn event(&self, _: &ObjectReference, _: bool, reason: &str, message: &str) {
        self.0.lock().push(format!("{reason}: {message}"));
    }
}

struct World {
    api: Arc<Api>,
    fake: Arc<Fake>,
    clock: Arc<FakeClock>,
    events: Arc<Events>,
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    tasks: TaskGroup,
    directory: tempfile::TempDir,
}

fn world(spec: Value) -> World {
    let clock = FakeClock::new(Timestamp::from_second(1_800_000_000).unwrap());
    let mailbox: Arc<Mailbox> = Arc::default();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec, "metadata": {
        "name": "web", "namespace": "default", "uid": "uid-1", "resourceVersion": "1", "generation": 1}});
    let api =
        Arc::new(Api { pod: Mutex::new(pod), revision: Mutex::new(1), deleted: Mutex::default(), mailbox: Arc::clone(&mailbox) });
    let fake = Fake::new(Arc::clone(&clock) as _);
    fake.add_image("nginx:1.14");
    let tasks = TaskGroup::new();
    let directory = tempfile::tempdir().unwrap();
    let events = Arc::new(Events::default());
    let client = Client::new(Arc::clone(&api) as _, "test");
    let runtime = Arc::clone(&fake) as Arc<dyn crate::cri::Runtime>;
    let network = watch::channel(Some(Arc::new(Network) as Arc<dyn SandboxNetwork>)).1;
    let context = Arc::new(Context {
        node_ip: [192, 0, 2, 1].into(),
        pods_dir: directory.path().to_owned(),
        seccomp_dir: directory.path().join("seccomp"),
        owner: "o".to_owned(),
        cluster_dns: None,
        cluster_domain: "cluster.local".to_owned(),
        client: client.clone(),
        runtime: Arc::clone(&runtime),
        clock: Arc::clone(&clock) as _,
        events: Arc::clone(&events) as _,
        network,
        sources: {
            let services = Informers::new(&tasks, client.clone()).of();
            Arc::new(Sources::new(&tasks, client.clone(), "n1", services, Arc::new(|_| ())))
        },
        volumes: {
            let drivers = crate::agent::csi::Drivers::new(directory.path(), "n1", client.clone(), &tasks);
            let csi = crate::agent::csi::CsiMounts::new(drivers, "n1", directory.path());
            Volumes::new(directory.path(), directory.path().join("storage"), csi)
        },
        images: Images::new(
            Arc::clone(&runtime),
            Arc::clone(&clock) as _,
            Arc::clone(&events) as _,
            Registries::default(),
            Arc::default(),
        ),
        prober: Prober::new(runtime, tasks.clone()).unwrap(),
        pods: Arc::new(Pods::default()),
        offer: NodeOffer {
            allocatable: Allocatable { cpu_milli: 2_000, memory_bytes: 1 << 30, ephemeral_storage_bytes: 1 << 30 },
            memory_bytes: 1 << 30,
            max_pids: None,
            cgroup_driver: CgroupDriver::Cgroupfs,
            can_lower_oom_score: true,
            has_recursive_read_only: false,
            has_apparmor: false,
            logs: super::context::LogLimits { max_bytes: 10 << 20, max_files: 5 },
        },
        pressures: Arc::default(),
        cpus: Arc::new(crate::agent::cpu::Cpus::shared_by_all()),
        grants: Default::default(),
        allowed_unsafe_sysctls: Vec::new(),
        nodes: Informer::start(&tasks, client.clone(), Scope::all()),
        starts: Semaphore::new(4),
        tasks: tasks.clone(),
    });
    let world = World { api, fake, clock, events, context, mailbox, tasks, directory };
    world.pump();
    world
}

impl World {
    /// Passes the runtime's news on, as the dispatcher does.
    fn pump(&self) {
        let (mut events, mailbox) = (crate::cri::Runtime::events(&*self.fake), Arc::clone(&self.mailbox));
        self.tasks.spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    RuntimeEvent::Container { id, .. } => mailbox.tell(|letters| {
                        letters.containers.insert(id);
                    }),
                    RuntimeEvent::Resync | RuntimeEvent::Down(_) => mailbox.tell(|letters| letters.resync = true),
                }
            }
        });
    }

    fn work(&self) {
        let pod: Pod = serde_json::from_value(self.api.pod.lock().clone()).unwrap();
        let worker = Worker::new(Arc::clone(&self.context), Arc::clone(&self.mailbox), Arc::new(pod));
        self.tasks.spawn(worker.run());
    }

    fn status(&self) -> Value {
        self.api.pod.lock()["status"].clone()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..500 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:#}\n{:#?}\n{:#?}", self.status(), self.events.0.lock(), self.fake.calls());
    }

    async fn until_ready(&self) {
        self.until("ready", |world| world.is_ready()).await;
    }

    fn is_ready(&self) -> bool {
        let status = self.status();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    fn id(&self, container: &str, attempt: u32) -> String {
        self.fake.id_of(&format!("k8s_{container}_web_default_uid-1_{attempt}")).unwrap()
    }
}

fn one() -> Value {
    json!({"nodeName": "n1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "web", "image": "nginx:1.14", "imagePullPolicy": "IfNotPresent",
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
        "volumes": [{"name": "scratch", "emptyDir": {}}]})
}

#[tokio::test]
async fn from_nothing_to_ready_to_gone() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    let status = world.status();
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.42.0.2");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    let Some(crate::cri::fake::Created::Container(spec)) = world.fake.created("k8s_web_web_default_uid-1_0") else {
        panic!("no container")
    };
    assert!(spec.env.contains(&"IP=10.42.0.2".to_owned()), "{:?}", spec.env);
    assert!(spec.mounts.iter().any(|mount| mount.container_path == "/scratch"));
    assert_eq!(world.fake.count(Call::CreateContainer), 1);
    let lookup = world.context.pods.container("default", "web", "").unwrap();
    assert_eq!(lookup.running().unwrap().id, world.id("web", 0));

    world.api.change(|pod| {
        pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(1);
    });
    world.until("deleted", |world| *world.api.deleted.lock()).await;
    assert_eq!(world.status()["phase"], "Failed");
    world.until("withdrawn", |world| world.context.pods.list().is_empty()).await;
    assert!(crate::cri::Runtime::list(&*world.fake).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(world.directory.path()).unwrap().count(), 0);
    let events = world.events.0.lock().clone();
    for words in ["Created: Created container: web", "Started: Started container web", "Killing: Stopping container web"] {
        assert_eq!(events.iter().filter(|event| *event == words).count(), 1, "{words}: {events:?}");
    }
}

#[tokio::test]
async fn a_crash_restarts_and_then_backs_off() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    world.fake.exit(&world.id("web", 0), 3);
    world.until("restarted", |world| world.status()["containerStatuses"][0]["restartCount"] == 1).await;
    world.until_ready().await;
    assert_eq!(world.status()["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    world.fake.exit(&world.id("web", 1), 3);
    let reason = |world: &World| world.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    world.until("backs off", |world| reason(world) == "CrashLoopBackOff").await;
    world.clock.advance(Duration::from_secs(11));
    world.mailbox.tell(|letters| letters.sources = true);
    world.until("restarted again", |world| world.status()["containerStatuses"][0]["restartCount"] == 2).await;
}

#[tokio::test]
async fn a_clock_that_is_set_holds_nothing_up_and_ends_nothing() {
    const DAY_SECONDS: i64 = 86_400;
    let world = world(one());
    world.work();
    world.until_ready().await;
    let began = crate::rt::Clock::now(&*world.clock);
    let set = |seconds: i64| {
        world.clock.set(began + jiff::SignedDuration::from_secs(seconds));
        world.mailbox.tell(|letters| letters.resync = true);
    };
    let restarts = |world: &World| world.status()["containerStatuses"][0]["restartCount"].clone();
    let reason = |world: &World| world.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    world.fake.exit(&world.id("web", 0), 3);
    world.until("runs again", |world| restarts(world) == 1 && world.is_ready()).await;
    for (step, attempt) in [(-DAY_SECONDS, 1), (DAY_SECONDS, 2)] {
        set(0);
        world.fake.exit(&world.id("web", attempt), 3);
        world.until("backs off", |world| reason(world) == "CrashLoopBackOff").await;
        set(step);
        world.until("restarted", |world| restarts(world) == attempt + 1 && world.is_ready()).await;
    }
    assert_eq!(world.status()["phase"], "Running");
    set(-DAY_SECONDS);
    world.until("still there", |world| world.is_ready()).await;
    assert_eq!(restarts(&world), 3);
}

#[tokio::test]
async fn an_agent_that_comes_back_knows_the_pods_address_better_than_the_api() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    let mut pod: Pod = serde_json::from_value(world.api.pod.lock().clone()).unwrap();
    pod.status.as_mut().unwrap().pod_ip = Some("10.42.0.99".to_owned());
    let mut worker = Worker::new(Arc::clone(&world.context), Arc::new(Mailbox::default()), Arc::new(pod));
    worker.refresh().await.unwrap();
    assert_eq!(worker.records.pod_ip, Some("10.42.0.2".parse().unwrap()));
}

#[tokio::test]
async fn an_agent_that_comes_back_knows_from_the_api_whom_a_container_began_as() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    let mut pod: Pod = serde_json::from_value(world.api.pod.lock().clone()).unwrap();
    let statuses = pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
    statuses[0].user = serde_json::from_value(json!({"linux": {"uid": 5, "gid": 6, "supplementalGroups": [6, 7]}})).unwrap();
    let mut worker = Worker::new(Arc::clone(&world.context), Arc::new(Mailbox::default()), Arc::new(pod));
    worker.refresh().await.unwrap();
    let began = worker.runtime.latest("web").unwrap().detail.user.clone();
    assert_eq!(began, Some(crate::cri::ProcessUser { uid: 5, gid: 6, groups: vec![6, 7] }));
}

#[tokio::test]
async fn only_what_ran_can_end_by_being_removed() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    let (id, pod) = (world.id("web", 0), serde_json::from_value::<Pod>(world.api.pod.lock().clone()).unwrap());
    let mut worker = Worker::new(Arc::clone(&world.context), Arc::default(), Arc::new(pod));
    worker.refresh().await.unwrap();
    let created = &mut worker.runtime.containers.get_mut("web").unwrap()[0].detail;
    (created.state, created.started_at) = (State::Created, None);
    worker.lose(&id);
    assert!(worker.runtime.latest("web").is_none(), "it is made anew");
    worker.refresh().await.unwrap();
    worker.lose(&id);
    let lost = &worker.runtime.latest("web").unwrap();
    assert_eq!((lost.detail.state, lost.detail.exit_code, lost.is_lost), (State::Exited, 137, true));
}

#[tokio::test]
async fn an_agent_that_comes_back_restarts_nothing() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    let second = Arc::new(Mailbox::default());
    let pod: Pod = serde_json::from_value(world.api.pod.lock().clone()).unwrap();
    let worker = Worker::new(Arc::clone(&world.context), Arc::clone(&second), Arc::new(pod));
    world.tasks.spawn(worker.run());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.fake.count(Call::CreateContainer), 1);
    assert_eq!(world.fake.count(Call::CreateSandbox), 1);
    assert_eq!(world.fake.count(Call::Stop), 0);
    assert!(world.is_ready());
}

#[tokio::test]
async fn a_dead_sandbox_is_made_anew() {
    let world = world(one());
    world.work();
    world.until_ready().await;
    world.fake.exit(&world.id("POD", 0), 137);
    world.until("a new sandbox", |world| world.fake.id_of("k8s_POD_web_default_uid-1_1").is_some()).await;
    world.until("restarted", |world| world.status()["containerStatuses"][0]["restartCount"] == 1 && world.is_ready()).await;
    assert!(world.events.0.lock().iter().any(|event| event.starts_with("SandboxChanged")));
}

#[tokio::test]
async fn what_is_due_when_the_clock_was_set_is_done_then() {
    let mut spec = one();
    (spec["activeDeadlineSeconds"], spec["terminationGracePeriodSeconds"]) = (json!(3_600), json!(1));
    let world = world(spec);
    world.work();
    world.until_ready().await;
    let start = world.context.clock.now();
    world.clock.set(start - Duration::from_secs(7_200));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(world.is_ready(), "nothing is due");
    world.clock.set(start + Duration::from_secs(7_200));
    world.until("the deadline is over", |world| world.status()["reason"] == "DeadlineExceeded").await;
}

#[tokio::test]
async fn a_job_ends() {
    let mut spec = one();
    spec["restartPolicy"] = json!("Never");
    let world = world(spec);
    world.work();
    world.until_ready().await;
    world.fake.exit(&world.id("web", 0), 0);
    world.until("succeeded", |world| world.status()["phase"] == "Succeeded").await;
    let sandboxes_gone = |world: &World| world.fake.id_of("k8s_POD_web_default_uid-1_0").is_none();
    world.until("the sandbox is taken down", sandboxes_gone).await;
    let detail = crate::cri::Runtime::inspect(&*world.fake, &world.id("web", 0)).await.unwrap();
    assert_eq!(detail.state, State::Exited, "the container stays for its log");
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mut spec = one();
    spec["containers"][0]["image"] = json!("nginx:nope");
    let world = world(spec);
    world.work();
    let waiting = |world: &World| world.status()["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    world.until("the image cannot be pulled", |world| waiting(world) == "ErrImagePull").await;
    world.clock.advance(Duration::from_secs(2));
    world.mailbox.tell(|letters| letters.sources = true);
    world.until("backs off", |world| waiting(world) == "ImagePullBackOff").await;

    let mut spec = one();
    spec["containers"][0]["env"] = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]);
    let world = self::world(spec);
    world.work();
    let config_error = |world: &World| world.status()["containerStatuses"][0]["state"]["waiting"].clone();
    world.until("the ConfigMap is missing", |world| config_error(world)["reason"] == "CreateContainerConfigError").await;
    assert_eq!(config_error(&world)["message"], "configmap \"no\" not found");
}

#[tokio::test]
async fn a_resize_changes_the_running_container() {
    let mut spec = one();
    spec["containers"][0]["resources"] = json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}});
    let world = world(spec);
    world.work();
    world.until_ready().await;
    let resize = |cpu: &str| {
        world
            .api
            .change(|pod| pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}, "limits": {"cpu": "5"}}));
    };
    let status = |world: &World| world.status()["containerStatuses"][0].clone();
    resize("300m");
    world.until("resized", |world| status(world)["resources"]["limits"]["cpu"] == "5").await;
    assert_eq!(status(&world)["allocatedResources"]["cpu"], "300m");
    assert_eq!((world.fake.count(Call::Update), world.fake.count(Call::CreateContainer)), (1, 1));
    resize("3");
    let pending = |world: &World| {
        let conditions = world.status()["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "PodResizePending")
    };
    world.until("infeasible", |world| pending(world).is_some_and(|condition| condition["reason"] == "Infeasible")).await;
    assert_eq!(status(&world)["allocatedResources"]["cpu"], "300m");
    resize("300m");
    world.until("nothing pends", |world| pending(world).is_none()).await;
    let events = world.events.0.lock().clone();
    assert!(
        events.iter().any(|event| event.starts_with("ResizeInfeasible: Node didn't have enough capacity: cpu")),
        "{events:?}"
    );
}

#[tokio::test]
async fn what_the_node_cannot_do_is_refused() {
    let mut spec = one();
    spec["securityContext"] = json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]});
    let world = world(spec);
    world.work();
    world.until("refused", |world| world.status()["phase"] == "Failed").await;
    let status = world.status();
    assert_eq!(status["reason"], "SysctlForbidden");
    assert_eq!(status["message"], "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    assert!(status.get("containerStatuses").is_none());
    assert_eq!((world.fake.count(Call::CreateSandbox), world.fake.count(Call::CreateContainer)), (0, 0));
}

#[tokio::test]
async fn an_eviction_goes_on_after_a_restart_of_the_agent() {
    let world = world(one());
    world.api.change(|pod| {
        pod["status"] = json!({"phase": "Running", "startTime": "2027-01-15T08:00:00Z", "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "low"}]});
    });
    world.work();
    world.until("failed", |world| world.status()["phase"] == "Failed").await;
    assert_eq!((&world.status()["reason"], &world.status()["message"]), (&json!("Evicted"), &json!("low")));
    assert_eq!(world.fake.count(Call::CreateContainer), 0, "what was evicted is not started again");
}

#[tokio::test]
async fn an_evicted_pod_ends_soon_and_says_why() {
    let mut spec = one();
    spec["terminationGracePeriodSeconds"] = json!(3_600);
    let world = world(spec);
    world.work();
    world.until_ready().await;
    let (done, gone) = tokio::sync::oneshot::channel();
    let ended = super::status::Ended {
        reason: "Evicted".to_owned(),
        message: "The node was low on resource: memory. ".to_owned(),
        grace: Some(Duration::from_secs(1)),
        is_disruption: true,
    };
    world.mailbox.tell(|letters| letters.evict = Some(super::mailbox::Evict { ended, done }));
    assert!(tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap().is_err(), "dropped when the pod has ended");
    world.until("failed", |world| world.status()["phase"] == "Failed").await;
    let status = world.status();
    assert_eq!((&status["reason"], &status["message"]), (&json!("Evicted"), &json!("The node was low on resource: memory. ")));
    let conditions = status["conditions"].as_array().cloned().unwrap();
    let disruption = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&disruption["status"], &disruption["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(world.fake.count(Call::CreateContainer), 1, "it is not started again");
    let sandboxes_gone = |world: &World| world.fake.id_of("k8s_POD_web_default_uid-1_0").is_none();
    world.until("the sandbox is taken down", sandboxes_gone).await;
}
