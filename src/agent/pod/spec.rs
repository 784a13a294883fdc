//! The runtime's spec of a sandbox or container, from the pod's. Pure: whatever must be looked up is handed in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, Pod, PodSecurityContext, PodSpec, SELinuxOptions, SeccompProfile, SecurityContext,
};

use super::context::NodeOffer;
use super::env::expand;
use super::files;
use super::resources::{GPU, cgroup_parent, container_resources, limit, oom_score_adj, qos_class};
use super::state::{Member, Role};
use crate::agent::cpu::Share;
use crate::cri::{ContainerSpec, Device, DeviceRequest, Image, Mount, Propagation, Resources, SandboxSpec, Seccomp, labels};

fn text(value: Option<&String>) -> &str {
    value.map_or("", String::as_str)
}

/// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`; a sandbox's container is `POD`.
pub fn container_name(pod: &Pod, container: &str, attempt: u32) -> String {
    let meta = &pod.metadata;
    let (name, namespace, uid) = (text(meta.name.as_ref()), text(meta.namespace.as_ref()), text(meta.uid.as_ref()));
    format!("k8s_{container}_{name}_{namespace}_{uid}_{attempt}")
}

fn base_labels(pod: &Pod, owner: &str, kind: &str, attempt: u32) -> BTreeMap<String, String> {
    let meta = &pod.metadata;
    let table = [
        (labels::POD_NAME, text(meta.name.as_ref())),
        (labels::POD_NAMESPACE, text(meta.namespace.as_ref())),
        (labels::POD_UID, text(meta.uid.as_ref())),
        (labels::TYPE, kind),
        (labels::OWNER, owner),
        (labels::ATTEMPT, &attempt.to_string()),
    ];
    table.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The sandbox of a pod.
pub fn sandbox_spec(pod: &Pod, attempt: u32, owner: &str, domain: &str, offer: &NodeOffer) -> SandboxSpec {
    let default = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    let host_network = spec.host_network == Some(true);
    SandboxSpec {
        name: container_name(pod, "POD", attempt),
        hostname: if host_network { String::new() } else { files::sandbox_hostname(pod, domain) },
        labels: base_labels(pod, owner, "podsandbox", attempt),
        host_network,
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        cgroup_parent: cgroup_parent(qos_class(pod), text(pod.metadata.uid.as_ref()), offer.cgroup_driver),
        selinux: spec.security_context.as_ref().map_or_else(Vec::new, |context| selinux(context.se_linux_options.as_ref())),
        oci_runtime: String::new(),
    }
}

/// What a container's spec is made from, beside the pod.
pub struct ContainerInput<'a> {
    pub pod: &'a Pod,
    pub member: &'a Member,
    pub attempt: u32,
    pub owner: &'a str,
    pub offer: &'a NodeOffer,
    pub image: &'a Image,
    pub sandbox_id: &'a str,
    /// The running container whose processes an ephemeral container shares.
    pub target_id: Option<String>,
    pub seccomp: Seccomp,
    pub oci_runtime: String,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub host_devices: Vec<Device>,
    /// The CPUs that it runs on, where the node gives them out.
    pub cpus: Option<Share>,
}

/// A container of a pod.
///
/// # Errors
/// The kubelet's words, for `CreateContainerConfigError`.
pub fn container_spec(input: ContainerInput<'_>) -> Result<ContainerSpec, String> {
    let ContainerInput {
        pod,
        member,
        attempt,
        owner,
        offer,
        image,
        sandbox_id,
        target_id,
        seccomp,
        oci_runtime,
        env,
        mounts,
        host_devices,
        cpus,
    } = input;
    let (container, default) = (&member.spec, PodSpec::default());
    let spec = pod.spec.as_ref().unwrap_or(&default);
    let pod_security = spec.security_context.clone().unwrap_or_default();
    let security = container.security_context.clone().unwrap_or_default();
    let user = user(pod, container, &pod_security, &security, image)?;
    let (capabilities_add, capabilities_drop) = capabilities(security.capabilities.as_ref());
    let lookup = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let expand_all = |words: &Option<Vec<String>>| {
        let words = words.as_ref().filter(|words| !words.is_empty());
        words.map(|words| words.iter().map(|word| expand(word, lookup)).collect::<Vec<_>>())
    };
    let privileged = security.privileged == Some(true);
    let score = oom_score_adj(pod, container, offer.memory_bytes);
    let groups = pod_security.supplemental_groups.iter().flatten().copied().chain(pod_security.fs_group);
    Ok(ContainerSpec {
        name: container_name(pod, &container.name, attempt),
        image: container.image.clone().unwrap_or_default(),
        command: expand_all(&container.command),
        args: expand_all(&container.args),
        env: env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        working_dir: text(container.working_dir.as_ref()).to_owned(),
        labels: container_labels(base_labels(pod, owner, "container", attempt), member, sandbox_id, image),
        mounts,
        host_devices,
        sandbox_id: sandbox_id.to_owned(),
        share_pid: spec.share_process_namespace == Some(true),
        host_uts: spec.host_network == Some(true),
        host_pid: spec.host_pid == Some(true),
        pid_of: target_id,
        user,
        supplemental_groups: groups.collect(),
        merge_image_groups: pod_security.supplemental_groups_policy.as_deref() != Some("Strict"),
        privileged,
        read_only_rootfs: security.read_only_root_filesystem == Some(true),
        no_new_privileges: security.allow_privilege_escalation == Some(false) && !privileged,
        capabilities_add,
        capabilities_drop,
        seccomp,
        apparmor: apparmor(&pod_security, &security),
        selinux: selinux(security.se_linux_options.as_ref().or(pod_security.se_linux_options.as_ref())),
        unmasked_proc: security.proc_mount.as_deref() == Some("Unmasked"),
        devices: devices(container),
        oci_runtime,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        resources: on_cpus(limits(pod, member), cpus.as_ref()),
        oom_score_adj: Some(score).filter(|score| *score >= 0 || offer.can_lower_oom_score),
        cgroup_parent: cgroup_parent(qos_class(pod), text(pod.metadata.uid.as_ref()), offer.cgroup_driver),
        log_max_bytes: offer.logs.max_bytes,
        log_max_files: offer.logs.max_files,
    })
}

fn container_labels(
    mut labels: BTreeMap<String, String>,
    member: &Member,
    sandbox_id: &str,
    image: &Image,
) -> BTreeMap<String, String> {
    let digest = image.digest_of(member.spec.image.as_deref().unwrap_or(""));
    let own = [
        (labels::CONTAINER_NAME, member.spec.name.as_str()),
        (labels::SANDBOX_ID, sandbox_id),
        (labels::SPEC_HASH, member.hash.as_str()),
    ];
    let digest = digest.map(|digest| (labels::IMAGE_DIGEST, digest));
    labels.extend(own.into_iter().chain(digest).map(|(name, value)| (name.to_owned(), value.to_owned())));
    labels
}

/// What is added to look into a running pod is not limited.
fn limits(pod: &Pod, member: &Member) -> Resources {
    if member.role == Role::Ephemeral { Resources::default() } else { container_resources(pod, &member.spec) }
}

/// Limits of a container that runs on these CPUs. What has CPUs of its own is not slowed down there (upstream
/// `DisableCPUQuotaWithExclusiveCPUs`).
pub fn on_cpus(resources: Resources, share: Option<&Share>) -> Resources {
    let cpuset = share.map(|share| share.cpus.to_string());
    match share {
        Some(share) if share.is_exclusive => Resources { cpuset, cpu_quota_us: None, cpu_period_us: None, ..resources },
        _ => Resources { cpuset, ..resources },
    }
}

fn user(
    pod: &Pod,
    container: &Container,
    pod_security: &PodSecurityContext,
    security: &SecurityContext,
    image: &Image,
) -> Result<String, String> {
    let uid = security.run_as_user.or(pod_security.run_as_user);
    let gid = security.run_as_group.or(pod_security.run_as_group);
    if security.run_as_non_root.or(pod_security.run_as_non_root) == Some(true) {
        let whose = format!("(pod: \"{}\", container: {})", super::status::full_name(pod), container.name);
        let image_user = image.user.split(':').next().unwrap_or("");
        match (uid, image_user.parse::<i64>()) {
            (Some(0), _) => return Err(format!("container's runAsUser breaks non-root policy {whose}")),
            (Some(_), _) => {}
            (None, Ok(0)) => return Err(format!("container has runAsNonRoot and image will run as root {whose}")),
            (None, Ok(_)) => {}
            (None, Err(_)) if image_user.is_empty() || image_user == "root" => {
                return Err(format!("container has runAsNonRoot and image will run as root {whose}"));
            }
            (None, Err(_)) => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {whose}"
                ));
            }
        }
    }
    Ok(match (uid, gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        (Some(uid), None) => uid.to_string(),
        (None, Some(gid)) if image.user.is_empty() => format!("0:{gid}"),
        (None, Some(gid)) => format!("{}:{gid}", image.user.split(':').next().unwrap_or("0")),
        (None, None) => String::new(),
    })
}

/// The profile of a container: its own, or the pod's.
pub fn seccomp_profile<'a>(pod: &'a Pod, container: &'a Container) -> Option<&'a SeccompProfile> {
    let own = container.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    own.or_else(|| pod.spec.as_ref()?.security_context.as_ref()?.seccomp_profile.as_ref())
}

/// The name of the AppArmor profile; `None` leaves it to the engine, whose own profile it then is.
fn apparmor(pod: &PodSecurityContext, container: &SecurityContext) -> Option<String> {
    let profile = container.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref())?;
    match profile.type_.as_str() {
        "Unconfined" => Some("unconfined".to_owned()),
        "Localhost" => profile.localhost_profile.clone(),
        _ => None,
    }
}

fn selinux(options: Option<&SELinuxOptions>) -> Vec<String> {
    let Some(options) = options else { return Vec::new() };
    let parts = [("user", &options.user), ("role", &options.role), ("type", &options.type_), ("level", &options.level)];
    let given = parts.into_iter().filter_map(|(name, value)| Some((name, value.as_deref().filter(|text| !text.is_empty())?)));
    given.map(|(name, value)| format!("{name}:{value}")).collect()
}

/// GPUs by Docker's own means: `nvidia.com/gpu: 2` asks for two of them.
fn devices(container: &Container) -> Vec<DeviceRequest> {
    let gpus = limit(container, GPU).map(|count| DeviceRequest {
        driver: "nvidia".to_owned(),
        count: count.value(),
        capabilities: vec!["gpu".to_owned()],
    });
    gpus.into_iter().collect()
}

fn capabilities(capabilities: Option<&Capabilities>) -> (Vec<String>, Vec<String>) {
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let add = list(capabilities.and_then(|all| all.add.as_ref()));
    (add, list(capabilities.and_then(|all| all.drop.as_ref())))
}

/// A bind mount that containers of one pod share.
pub fn bind(host_path: PathBuf, container_path: &str, read_only: bool) -> Mount {
    Mount {
        host_path,
        container_path: container_path.to_owned(),
        read_only,
        recursive_read_only: false,
        propagation: Propagation::Private,
    }
}
