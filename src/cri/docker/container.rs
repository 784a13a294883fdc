//! Containers: create, start, stop, remove, list, inspect, update.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{
    self, ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummaryStateEnum,
    ContainerUpdateBody, HealthConfig, HostConfig, HostConfigLogConfig, MountBindOptions, MountBindOptionsPropagationEnum,
    MountType,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    StartContainerOptions, StopContainerOptionsBuilder,
};
use jiff::Timestamp;

use super::{Engine, identity};
use crate::cri::{
    ContainerDetail, ContainerSpec, ContainerSummary, Device, DeviceRequest, Mount, Propagation, Resources, RuntimeError,
    Seccomp, State, labels,
};
use crate::rt::limits::RUNTIME_CALL;

/// How often a creation is tried when its name is in use by something that then goes away.
const CREATE_ATTEMPTS: usize = 3;

impl Engine {
    pub(super) async fn make_container(&self, spec: &ContainerSpec) -> Result<String, RuntimeError> {
        let lowered = spec.oom_score_adj.is_some_and(|score| score < 0);
        let oom_score_adj = if lowered && !self.can_lower_oom_score().await { None } else { spec.oom_score_adj };
        let mut body = body(spec, oom_score_adj);
        let groups = self.image_groups(spec).await?;
        if let Some(config) = body.host_config.as_mut().filter(|_| !groups.is_empty()) {
            config.group_add.get_or_insert_default().extend(groups);
        }
        self.create_named(&spec.name, &spec.labels, body).await
    }

    /// Creates a container under a name. One of that name with the same labels is the same container and is kept; any other
    /// is in the way and is removed.
    pub(super) async fn create_named(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        body: ContainerCreateBody,
    ) -> Result<String, RuntimeError> {
        let client = self.client()?;
        let mut conflict = None;
        for _ in 0..CREATE_ATTEMPTS {
            let options = CreateContainerOptionsBuilder::new().name(name).build();
            match self.within("create", RUNTIME_CALL, client.create_container(Some(options), body.clone())).await {
                Ok(created) => return Ok(created.id),
                Err(RuntimeError::Conflict(words)) => conflict = Some(RuntimeError::Conflict(words)),
                Err(error) => return Err(error),
            }
            match self.inspect_by_id(name).await {
                Ok(present) if present.name == name && is_same(&present.labels, labels) => return Ok(present.id),
                Ok(present) if present.name == name => self.remove_by_id(&present.id).await?,
                Ok(_) | Err(RuntimeError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(conflict.unwrap_or_else(|| RuntimeError::Conflict(format!("container name {name:?} is in use"))))
    }

    pub(super) async fn start_by_id(&self, id: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let _permit = self.starts.acquire().await;
        // One that runs answers 304, which is a success too.
        self.within("start", RUNTIME_CALL, client.start_container(id, None::<StartContainerOptions>)).await
    }

    pub(super) async fn stop_by_id(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let seconds = i32::try_from(grace.as_secs_f64().ceil() as i64).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::new().t(seconds).build();
        let deadline = grace.saturating_add(RUNTIME_CALL);
        match self.within("stop", deadline, client.stop_container(id, Some(options))).await {
            Err(RuntimeError::NotFound(_)) => Ok(()),
            result => result,
        }
    }

    pub(super) async fn remove_by_id(&self, id: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.within("remove", RUNTIME_CALL, client.remove_container(id, Some(options))).await {
            Ok(()) | Err(RuntimeError::NotFound(_)) => Ok(()),
            // Somebody else removes it at this moment.
            Err(RuntimeError::Conflict(words)) if words.contains("already in progress") => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn list_owned(&self) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let client = self.client()?;
        let filters = HashMap::from([("label", vec![format!("{}={}", labels::OWNER, self.owner)])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let containers = self.within("list", RUNTIME_CALL, client.list_containers(Some(options))).await?;
        Ok(containers.into_iter().map(summary).collect())
    }

    pub(super) async fn inspect_by_id(&self, id: &str) -> Result<ContainerDetail, RuntimeError> {
        let client = self.client()?;
        // Never with `size`: it walks the container's whole file system.
        let found = client.inspect_container(id, None::<InspectContainerOptions>);
        self.within("inspect", RUNTIME_CALL, found).await.map(detail)
    }

    pub(super) async fn update_by_id(&self, id: &str, resources: &Resources) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let body = ContainerUpdateBody {
            cpu_shares: resources.cpu_shares,
            cpu_quota: resources.cpu_quota_us,
            cpu_period: resources.cpu_period_us,
            memory: resources.memory_bytes,
            memory_swap: resources.memory_bytes,
            pids_limit: resources.pids,
            cpuset_cpus: resources.cpuset.clone(),
            ..ContainerUpdateBody::default()
        };
        self.within("update", RUNTIME_CALL, client.update_container(id, body)).await
    }
}

/// Whether a container that is there was created from the same spec: everything that was asked for is on it.
fn is_same(present: &BTreeMap<String, String>, asked: &BTreeMap<String, String>) -> bool {
    asked.iter().all(|(key, value)| present.get(key) == Some(value))
}

fn body(spec: &ContainerSpec, oom_score_adj: Option<i64>) -> ContainerCreateBody {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: spec.command.clone(),
        cmd: spec.args.clone(),
        env: Some(spec.env.clone()),
        working_dir: some(&spec.working_dir),
        user: some(&spec.user),
        labels: Some(spec.labels.clone().into_iter().collect()),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin_once),
        tty: Some(spec.tty),
        stop_signal: spec.stop_signal.clone(),
        // Probes are the agent's business.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        host_config: Some(host_config(spec, oom_score_adj)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(spec: &ContainerSpec, oom_score_adj: Option<i64>) -> HostConfig {
    let sandbox = Some(format!("container:{}", spec.sandbox_id));
    let target = spec.pid_of.as_ref().map(|id| format!("container:{id}"));
    let resources = &spec.resources;
    HostConfig {
        network_mode: sandbox.clone(),
        ipc_mode: sandbox.clone(),
        uts_mode: spec.host_uts.then(|| "host".to_owned()),
        pid_mode: if spec.host_pid { Some("host".to_owned()) } else { target.or_else(|| sandbox.filter(|_| spec.share_pid)) },
        mounts: Some(spec.mounts.iter().map(mount).collect()),
        devices: Some(spec.host_devices.iter().map(device).collect()),
        group_add: Some(spec.supplemental_groups.iter().map(ToString::to_string).collect()),
        privileged: Some(spec.privileged),
        readonly_rootfs: Some(spec.read_only_rootfs),
        cap_add: Some(spec.capabilities_add.clone()),
        cap_drop: Some(spec.capabilities_drop.clone()),
        security_opt: Some(security(spec)),
        // Given and empty they mask nothing; absent they are the engine's own.
        masked_paths: spec.unmasked_proc.then(Vec::new),
        readonly_paths: spec.unmasked_proc.then(Vec::new),
        device_requests: Some(spec.devices.iter().map(device_request).collect()),
        runtime: (!spec.oci_runtime.is_empty()).then(|| spec.oci_runtime.clone()),
        cpu_shares: resources.cpu_shares,
        cpu_quota: resources.cpu_quota_us,
        cpu_period: resources.cpu_period_us,
        memory: resources.memory_bytes,
        // The same as memory: no swap.
        memory_swap: resources.memory_bytes,
        pids_limit: resources.pids,
        cpuset_cpus: resources.cpuset.clone(),
        oom_score_adj,
        cgroup_parent: Some(spec.cgroup_parent.clone()),
        log_config: Some(log_config(spec)),
        ..HostConfig::default()
    }
}

fn security(spec: &ContainerSpec) -> Vec<String> {
    let mut options = Vec::new();
    if spec.no_new_privileges {
        options.push("no-new-privileges".to_owned());
    }
    match &spec.seccomp {
        // The engine confines no privileged container.
        _ if spec.privileged => {}
        Seccomp::Unconfined => options.push("seccomp=unconfined".to_owned()),
        Seccomp::RuntimeDefault => {}
        Seccomp::Profile(text) => options.push(format!("seccomp={text}")),
    }
    options.extend(spec.apparmor.iter().map(|profile| format!("apparmor={profile}")));
    options.extend(spec.selinux.iter().map(|label| format!("label={label}")));
    options
}

fn device_request(request: &DeviceRequest) -> models::DeviceRequest {
    models::DeviceRequest {
        driver: Some(request.driver.clone()),
        count: Some(request.count),
        capabilities: Some(vec![request.capabilities.clone()]),
        ..models::DeviceRequest::default()
    }
}

fn log_config(spec: &ContainerSpec) -> HostConfigLogConfig {
    let mut options = HashMap::new();
    if spec.log_max_bytes > 0 {
        options.insert("max-size".to_owned(), spec.log_max_bytes.to_string());
        options.insert("max-file".to_owned(), spec.log_max_files.max(1).to_string());
    }
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(options) }
}

fn device(device: &Device) -> models::DeviceMapping {
    models::DeviceMapping {
        path_on_host: Some(device.host_path.to_string_lossy().into_owned()),
        path_in_container: Some(device.container_path.clone()),
        cgroup_permissions: Some(if device.read_only { "r" } else { "rwm" }.to_owned()),
    }
}

fn mount(mount: &Mount) -> models::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => MountBindOptionsPropagationEnum::RPRIVATE,
        Propagation::HostToContainer => MountBindOptionsPropagationEnum::RSLAVE,
        Propagation::Bidirectional => MountBindOptionsPropagationEnum::RSHARED,
    };
    let recursive = mount.recursive_read_only.then_some(true);
    models::Mount {
        typ: Some(MountType::BIND),
        source: Some(mount.host_path.to_string_lossy().into_owned()),
        target: Some(mount.container_path.clone()),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(propagation),
            read_only_force_recursive: recursive,
            ..MountBindOptions::default()
        }),
        ..models::Mount::default()
    }
}

fn summary(container: models::ContainerSummary) -> ContainerSummary {
    let name = container.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    ContainerSummary {
        id: container.id.unwrap_or_default(),
        name: name.trim_start_matches('/').to_owned(),
        labels: container.labels.unwrap_or_default().into_iter().collect(),
        state: match container.state {
            Some(ContainerSummaryStateEnum::CREATED) => State::Created,
            Some(ContainerSummaryStateEnum::RUNNING) => State::Running,
            Some(ContainerSummaryStateEnum::EXITED) => State::Exited,
            _ => State::Unknown,
        },
    }
}

fn detail(found: ContainerInspectResponse) -> ContainerDetail {
    let state = found.state.unwrap_or_default();
    let config = found.config.unwrap_or_default();
    let running = state.running == Some(true);
    let started_at = time(state.started_at.as_deref());
    // The engine reads its clock when the start is done; a process that was quicker ended before, by its own clock.
    let finished_at =
        time(state.finished_at.as_deref()).map(|end| if running { end } else { end.max(started_at.unwrap_or(end)) });
    let pid = state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid != 0);
    ContainerDetail {
        id: found.id.unwrap_or_default(),
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        state: match state.status {
            Some(ContainerStateStatusEnum::CREATED) => State::Created,
            Some(ContainerStateStatusEnum::RUNNING) => State::Running,
            Some(ContainerStateStatusEnum::EXITED) => State::Exited,
            _ => State::Unknown,
        },
        pid,
        user: pid.filter(|_| running).and_then(identity::of_process),
        image: config.image.unwrap_or_default(),
        image_id: found.image.unwrap_or_default(),
        created_at: time(found.created.as_deref()),
        started_at,
        finished_at,
        exit_code: state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(0),
        oom_killed: state.oom_killed.unwrap_or(false),
        error: state.error.unwrap_or_default(),
        log_path: found.log_path.filter(|path| !path.is_empty()).map(PathBuf::from),
        tty: config.tty.unwrap_or(false),
    }
}

/// Go's zero time means "not yet".
fn time(text: Option<&str>) -> Option<Timestamp> {
    let time: Timestamp = text?.parse().ok()?;
    (time > Timestamp::UNIX_EPOCH).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_zero_time_is_none() {
        assert_eq!(time(Some("0001-01-01T00:00:00Z")), None);
        assert_eq!(time(Some("2026-11-22T22:59:50.875122311Z")).unwrap().subsec_nanosecond(), 875_122_311);
        assert_eq!(time(None), None);
    }

    #[test]
    fn joins_the_namespaces_of_its_sandbox() {
        let spec = ContainerSpec { sandbox_id: "abc".to_owned(), ..ContainerSpec::default() };
        let cases = [
            (spec.clone(), None),
            (ContainerSpec { share_pid: true, ..spec.clone() }, Some("container:abc")),
            (ContainerSpec { share_pid: true, pid_of: Some("web".to_owned()), ..spec.clone() }, Some("container:web")),
            (ContainerSpec { host_pid: true, share_pid: true, ..spec }, Some("host")),
        ];
        for (spec, pid_mode) in cases {
            let config = host_config(&spec, None);
            assert_eq!(config.network_mode.as_deref(), Some("container:abc"));
            assert_eq!(config.ipc_mode.as_deref(), Some("container:abc"));
            assert_eq!(config.pid_mode.as_deref(), pid_mode);
        }
    }

    #[test]
    fn confines_as_asked() {
        let profile = || Seccomp::Profile("{}".to_owned());
        let spec = ContainerSpec { no_new_privileges: true, ..ContainerSpec::default() };
        let table: [(ContainerSpec, &[&str]); 5] = [
            (spec.clone(), &["no-new-privileges", "seccomp=unconfined"]),
            (ContainerSpec { seccomp: Seccomp::RuntimeDefault, ..spec.clone() }, &["no-new-privileges"]),
            (ContainerSpec { seccomp: profile(), ..spec }, &["no-new-privileges", "seccomp={}"]),
            (ContainerSpec { seccomp: profile(), privileged: true, ..ContainerSpec::default() }, &[]),
            (
                ContainerSpec {
                    seccomp: Seccomp::RuntimeDefault,
                    apparmor: Some("own".to_owned()),
                    selinux: vec!["level:s0".to_owned()],
                    ..ContainerSpec::default()
                },
                &["apparmor=own", "label=level:s0"],
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(security(&spec), expected);
        }
    }

    #[test]
    fn limits_memory_and_swap_alike() {
        let resources = Resources { memory_bytes: Some(1 << 20), ..Resources::default() };
        let spec = ContainerSpec { resources, log_max_bytes: 10, log_max_files: 3, ..ContainerSpec::default() };
        let config = host_config(&spec, Some(1000));
        assert_eq!((config.memory, config.memory_swap, config.oom_score_adj), (Some(1 << 20), Some(1 << 20), Some(1000)));
        let logs = config.log_config.and_then(|logs| logs.config).unwrap();
        assert_eq!((logs["max-size"].as_str(), logs["max-file"].as_str()), ("10", "3"));
    }
}
