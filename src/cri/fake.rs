//! A container runtime in memory, for tests of the agent: containers are records, nothing runs. A test scripts failures, exits,
//! images and what an exec prints, and reads back the calls that were made.

use std::collections::{BTreeMap, VecDeque};
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::{
    CgroupDriver, ContainerDetail, ContainerSpec, ContainerSummary, EventStream, ExecControl, ExecSession, ExecSpec, Image,
    PullProgress, Pulled, RegistryAuth, Resources, Runtime, RuntimeError, RuntimeEvent, RuntimeInfo, SandboxSpec, State,
};
use crate::rt::clock::SharedClock;

/// Events that a slow reader may fall behind before it is told to look at everything.
const EVENT_BACKLOG: usize = 256;
/// Exit code of a process that SIGKILL ended.
const KILLED: i32 = 137;
/// Exit code of a process that SIGTERM ended.
const TERMINATED: i32 = 143;

/// A call of [`Runtime`], as the script and the log of a [`Fake`] name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Call {
    Info,
    CreateSandbox,
    CreateContainer,
    Start,
    Stop,
    Remove,
    List,
    Inspect,
    Update,
    Exec,
    Attach,
    Image,
    Images,
    Pull,
    Load,
    Tag,
    RemoveImage,
}

/// What a scripted exec prints and returns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// What was asked for when a container was created.
#[derive(Debug, Clone, PartialEq)]
pub enum Created {
    Sandbox(SandboxSpec),
    Container(Box<ContainerSpec>),
}

type ExecScript = Arc<dyn Fn(&str, &ExecSpec) -> ExecOutput + Send + Sync>;

struct Inner {
    containers: BTreeMap<String, (ContainerDetail, Created)>,
    images: BTreeMap<String, Image>,
    remote: BTreeMap<String, Image>,
    failures: BTreeMap<Call, VecDeque<RuntimeError>>,
    calls: Vec<(Call, String)>,
    down: Option<String>,
    exec: ExecScript,
    last_id: u64,
}

/// A runtime whose containers are records in memory.
pub struct Fake {
    inner: Mutex<Inner>,
    events: broadcast::Sender<RuntimeEvent>,
    clock: SharedClock,
}

impl Fake {
    /// An engine without containers or images.
    pub fn new(clock: SharedClock) -> Arc<Self> {
        let inner = Inner {
            containers: BTreeMap::new(),
            images: BTreeMap::new(),
            remote: BTreeMap::new(),
            failures: BTreeMap::new(),
            calls: Vec::new(),
            down: None,
            exec: Arc::new(|_, _| ExecOutput::default()),
            last_id: 0,
        };
        Arc::new(Self { inner: Mutex::new(inner), events: broadcast::channel(EVENT_BACKLOG).0, clock })
    }

    /// Puts an image on the node.
    pub fn add_image(&self, reference: &str) {
        self.inner.lock().images.insert(reference.to_owned(), image_of(reference));
    }

    /// Puts an image into the registry, from where it can be pulled.
    pub fn add_remote_image(&self, reference: &str) {
        self.inner.lock().remote.insert(reference.to_owned(), image_of(reference));
    }

    /// Lets the next call of this kind fail; several are used up in order.
    pub fn fail_next(&self, call: Call, error: RuntimeError) {
        self.inner.lock().failures.entry(call).or_default().push_back(error);
    }

    /// Says what an exec (or attach) prints, by container id and command.
    pub fn on_exec(&self, script: impl Fn(&str, &ExecSpec) -> ExecOutput + Send + Sync + 'static) {
        self.inner.lock().exec = Arc::new(script);
    }

    /// Ends the process of a running container, as if by itself. Does nothing where no such container runs.
    pub fn exit(&self, id: &str, exit_code: i32) {
        self.end(id, exit_code, false);
    }

    /// Ends the process of a running container as the kernel's OOM killer does.
    pub fn oom_kill(&self, id: &str) {
        self.end(id, KILLED, true);
    }

    /// Takes the engine away: every call fails until [`come_back`](Self::come_back).
    pub fn go_down(&self, why: &str) {
        self.inner.lock().down = Some(why.to_owned());
        self.publish(RuntimeEvent::Down(why.to_owned()));
    }

    /// Brings the engine back; containers are as they were.
    pub fn come_back(&self) {
        self.inner.lock().down = None;
        self.publish(RuntimeEvent::Resync);
    }

    /// The calls so far, each with what it was about (a name, an id, an image).
    pub fn calls(&self) -> Vec<(Call, String)> {
        self.inner.lock().calls.clone()
    }

    /// How often a call was made.
    pub fn count(&self, call: Call) -> usize {
        self.inner.lock().calls.iter().filter(|(made, _)| *made == call).count()
    }

    /// What the container of this name was created from.
    pub fn created(&self, name: &str) -> Option<Created> {
        self.inner.lock().containers.values().find(|(detail, _)| detail.name == name).map(|(_, created)| created.clone())
    }

    /// The id of the container of this name.
    pub fn id_of(&self, name: &str) -> Option<String> {
        self.inner.lock().containers.values().find(|(detail, _)| detail.name == name).map(|(detail, _)| detail.id.clone())
    }

    fn end(&self, id: &str, exit_code: i32, oom_killed: bool) {
        let now = self.clock.now();
        let labels = {
            let mut inner = self.inner.lock();
            let Some((detail, _)) = inner.containers.get_mut(id) else { return };
            if detail.state != State::Running {
                return;
            }
            detail.state = State::Exited;
            detail.pid = None;
            detail.finished_at = Some(now);
            detail.exit_code = exit_code;
            detail.oom_killed = oom_killed;
            detail.labels.clone()
        };
        self.publish(RuntimeEvent::Container { id: id.to_owned(), labels, action: "die".to_owned() });
    }

    /// Logs the call and fails it where the script says so.
    fn enter(&self, call: Call, about: &str) -> Result<(), RuntimeError> {
        let mut inner = self.inner.lock();
        inner.calls.push((call, about.to_owned()));
        if let Some(why) = &inner.down {
            return Err(RuntimeError::Unreachable { socket: "fake".to_owned(), why: why.clone() });
        }
        inner.failures.get_mut(&call).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }

    fn insert(&self, name: &str, labels: &BTreeMap<String, String>, image: &str, tty: bool, created: Created) -> String {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        if let Some((detail, _)) = inner.containers.values().find(|(detail, _)| detail.name == name) {
            return detail.id.clone();
        }
        inner.last_id += 1;
        let id = format!("{:064x}", inner.last_id);
        let image_id = inner.images.get(image).map_or_else(String::new, |image| image.id.clone());
        let detail = ContainerDetail {
            id: id.clone(),
            name: name.to_owned(),
            labels: labels.clone(),
            state: State::Created,
            pid: None,
            user: None,
            image: image.to_owned(),
            image_id,
            created_at: Some(now),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            log_path: None,
            tty,
        };
        inner.containers.insert(id.clone(), (detail, created));
        drop(inner);
        self.publish(RuntimeEvent::Container { id: id.clone(), labels: labels.clone(), action: "create".to_owned() });
        id
    }

    /// Nobody may be listening; that is no failure.
    fn publish(&self, event: RuntimeEvent) {
        drop(self.events.send(event));
    }

    fn session(&self, call: Call, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.enter(call, id)?;
        let script = {
            let inner = self.inner.lock();
            let (detail, _) = inner.containers.get(id).ok_or_else(|| no_such_container(id))?;
            if detail.state != State::Running {
                return Err(RuntimeError::Conflict(format!("Container {id} is not running")));
            }
            Arc::clone(&inner.exec)
        };
        let output = script(id, spec);
        Ok(ExecSession {
            stdout: spec.stdout.then(|| Box::pin(Cursor::new(output.stdout)) as _),
            stderr: (spec.stderr && !spec.tty).then(|| Box::pin(Cursor::new(output.stderr)) as _),
            stdin: spec.stdin.then(|| Box::pin(tokio::io::sink()) as _),
            control: Arc::new(FakeExec { exit_code: output.exit_code }),
        })
    }
}

fn no_such_container(id: &str) -> RuntimeError {
    RuntimeError::NotFound(format!("No such container: {id}"))
}

fn image_of(reference: &str) -> Image {
    let id = format!("sha256:{}", reference.bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
    Image { id, tags: vec![reference.to_owned()], digests: Vec::new(), size_bytes: 1 << 20, user: String::new() }
}

struct FakeExec {
    exit_code: i32,
}

#[async_trait]
impl ExecControl for FakeExec {
    async fn resize(&self, _columns: u16, _rows: u16) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn kill(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn exit_code(&self) -> Result<i32, RuntimeError> {
        Ok(self.exit_code)
    }
}

#[async_trait]
impl Runtime for Fake {
    async fn info(&self) -> Result<RuntimeInfo, RuntimeError> {
        self.enter(Call::Info, "")?;
        Ok(RuntimeInfo {
            name: "fake".to_owned(),
            version: "1.0.0".to_owned(),
            api_version: "1.41".to_owned(),
            kernel_version: "6.1.0".to_owned(),
            os_image: "Fake Linux".to_owned(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            cgroup_version: 2,
            root_dir: "/nonexistent".into(),
            can_lower_oom_score: true,
            ..RuntimeInfo::default()
        })
    }

    async fn create_sandbox(&self, spec: &SandboxSpec) -> Result<String, RuntimeError> {
        self.enter(Call::CreateSandbox, &spec.name)?;
        Ok(self.insert(&spec.name, &spec.labels, "", false, Created::Sandbox(spec.clone())))
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        self.enter(Call::CreateContainer, &spec.name)?;
        {
            let inner = self.inner.lock();
            if !inner.images.contains_key(&spec.image) {
                return Err(RuntimeError::NotFound(format!("No such image: {}", spec.image)));
            }
            if !inner.containers.contains_key(&spec.sandbox_id) {
                return Err(no_such_container(&spec.sandbox_id));
            }
        }
        Ok(self.insert(&spec.name, &spec.labels, &spec.image, spec.tty, Created::Container(Box::new(spec.clone()))))
    }

    async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.enter(Call::Start, id)?;
        let now = self.clock.now();
        let labels = {
            let mut inner = self.inner.lock();
            let pid = u32::try_from(inner.containers.len()).unwrap_or(u32::MAX);
            let (detail, _) = inner.containers.get_mut(id).ok_or_else(|| no_such_container(id))?;
            if detail.state == State::Running {
                return Ok(());
            }
            detail.state = State::Running;
            detail.pid = Some(pid.saturating_add(1));
            detail.started_at = Some(now);
            detail.finished_at = None;
            detail.labels.clone()
        };
        self.publish(RuntimeEvent::Container { id: id.to_owned(), labels, action: "start".to_owned() });
        Ok(())
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        self.enter(Call::Stop, id)?;
        self.end(id, if grace.is_zero() { KILLED } else { TERMINATED }, false);
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        self.enter(Call::Remove, id)?;
        let removed = self.inner.lock().containers.remove(id);
        if let Some((detail, _)) = removed {
            self.publish(RuntimeEvent::Container { id: id.to_owned(), labels: detail.labels, action: "destroy".to_owned() });
        }
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerSummary>, RuntimeError> {
        self.enter(Call::List, "")?;
        let inner = self.inner.lock();
        let summary = |(detail, _): &(ContainerDetail, Created)| ContainerSummary {
            id: detail.id.clone(),
            name: detail.name.clone(),
            labels: detail.labels.clone(),
            state: detail.state,
        };
        Ok(inner.containers.values().map(summary).collect())
    }

    async fn inspect(&self, id: &str) -> Result<ContainerDetail, RuntimeError> {
        self.enter(Call::Inspect, id)?;
        let inner = self.inner.lock();
        inner.containers.get(id).map(|(detail, _)| detail.clone()).ok_or_else(|| no_such_container(id))
    }

    async fn update(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        self.enter(Call::Update, id)?;
        let mut inner = self.inner.lock();
        let (_, created) = inner.containers.get_mut(id).ok_or_else(|| no_such_container(id))?;
        if let Created::Container(spec) = created {
            spec.resources = resources.clone();
        }
        Ok(())
    }

    fn events(&self) -> EventStream {
        let receiver = self.events.subscribe();
        Box::pin(stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(event) => Some((event, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((RuntimeEvent::Resync, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }

    async fn exec(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.session(Call::Exec, id, spec)
    }

    async fn attach(&self, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.session(Call::Attach, id, spec)
    }

    async fn image(&self, reference: &str) -> Result<Option<Image>, RuntimeError> {
        self.enter(Call::Image, reference)?;
        let inner = self.inner.lock();
        Ok(inner.images.get(reference).or_else(|| inner.images.values().find(|image| image.id == reference)).cloned())
    }

    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.enter(Call::Images, "")?;
        Ok(self.inner.lock().images.values().cloned().collect())
    }

    async fn pull(&self, reference: &str, _auth: Option<&RegistryAuth>, progress: PullProgress<'_>) -> Result<(), RuntimeError> {
        self.enter(Call::Pull, reference)?;
        let mut inner = self.inner.lock();
        let Some(image) = inner.remote.get(reference).cloned() else {
            return Err(RuntimeError::NotFound(format!(
                "manifest for {reference} not found: manifest unknown: manifest unknown"
            )));
        };
        inner.images.insert(reference.to_owned(), image);
        drop(inner);
        progress(Pulled { layers: 1, layers_done: 1, ..Pulled::default() });
        Ok(())
    }

    async fn load(&self, tarball: &Path) -> Result<Vec<String>, RuntimeError> {
        self.enter(Call::Load, &tarball.display().to_string())?;
        Ok(Vec::new())
    }

    async fn tag(&self, reference: &str, name: &str) -> Result<(), RuntimeError> {
        self.enter(Call::Tag, reference)?;
        let mut inner = self.inner.lock();
        let image = inner.images.get(reference).cloned();
        let image = image.ok_or_else(|| RuntimeError::NotFound(format!("No such image: {reference}")))?;
        inner.images.insert(name.to_owned(), image);
        Ok(())
    }

    async fn unpack_image(&self, _image: &str, _target: &std::path::Path) -> Result<(), RuntimeError> {
        Err(RuntimeError::Failed("the fake has no images to unpack".to_owned()))
    }

    async fn remove_image(&self, reference: &str) -> Result<(), RuntimeError> {
        self.enter(Call::RemoveImage, reference)?;
        self.inner.lock().images.remove(reference);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::rt::SystemClock;

    fn fake() -> Arc<Fake> {
        Fake::new(Arc::new(SystemClock))
    }

    #[tokio::test]
    async fn lives_through_a_container() {
        let fake = fake();
        let mut events = fake.events();
        fake.add_remote_image("busybox");
        let sandbox = fake.create_sandbox(&SandboxSpec { name: "POD".to_owned(), ..SandboxSpec::default() }).await.unwrap();
        let spec = ContainerSpec {
            name: "main".to_owned(),
            image: "busybox".to_owned(),
            sandbox_id: sandbox.clone(),
            ..ContainerSpec::default()
        };
        assert!(matches!(fake.create_container(&spec).await, Err(RuntimeError::NotFound(_))));
        fake.pull("busybox", None, &|_| ()).await.unwrap();
        let id = fake.create_container(&spec).await.unwrap();
        assert_eq!(fake.create_container(&spec).await.unwrap(), id, "idempotent by name");
        fake.start(&id).await.unwrap();
        fake.exit(&id, 3);
        let detail = fake.inspect(&id).await.unwrap();
        assert_eq!((detail.state, detail.exit_code), (State::Exited, 3));
        fake.remove(&id).await.unwrap();
        fake.remove(&id).await.unwrap();
        let mut actions = Vec::new();
        for _ in 0..5 {
            if let Some(RuntimeEvent::Container { action, .. }) = events.next().await {
                actions.push(action);
            }
        }
        assert_eq!(actions, ["create", "create", "start", "die", "destroy"]);
    }

    #[tokio::test]
    async fn fails_as_scripted() {
        let fake = fake();
        fake.fail_next(Call::List, RuntimeError::Failed("no".to_owned()));
        assert_eq!(fake.list().await, Err(RuntimeError::Failed("no".to_owned())));
        assert_eq!(fake.list().await, Ok(Vec::new()));
        fake.go_down("gone");
        assert!(matches!(fake.list().await, Err(RuntimeError::Unreachable { .. })));
        fake.come_back();
        assert_eq!(fake.count(Call::List), 3);
    }
}
