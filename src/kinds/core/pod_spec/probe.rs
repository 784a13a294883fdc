//! Checks of probes and lifecycle handlers.

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, PodSpec, Probe, SleepAction, TCPSocketAction,
};

use crate::api::field::{FieldError, Path};
use crate::kinds::check::{Errors, maybe_not_negative, port, port_or_name, required, required_one_of, str_of};

const NO_HANDLER: &str = "must specify a handler type";
const TWO_HANDLERS: &str = "may not specify more than 1 handler type";

/// The signals that a container may be stopped with, beside the real-time ones.
const SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

/// Checks the probes and lifecycle handlers of a container that runs beside others.
pub fn container(errors: &mut Errors, path: &Path, container: &Container, spec: &PodSpec) {
    if let Some(lifecycle) = &container.lifecycle {
        let path = path.child("lifecycle");
        self::lifecycle(errors, &path, lifecycle, spec.termination_grace_period_seconds);
        stop_signal(errors, &path.child("stopSignal"), lifecycle, spec);
    }
    let probes = [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
        ("startupProbe", &container.startup_probe),
    ];
    for (name, probe) in probes {
        if let Some(probe) = probe {
            self::probe(errors, &path.child(name), probe, name == "readinessProbe");
        }
    }
}

fn probe(errors: &mut Errors, path: &Path, probe: &Probe, is_readiness: bool) {
    handler(errors, path, probe.exec.as_ref(), probe.http_get.as_ref(), probe.tcp_socket.as_ref(), probe.grpc.as_ref(), None);
    let numbers = [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ];
    for (name, number) in numbers {
        maybe_not_negative(errors, &path.child(name), number);
    }
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let path = path.child("terminationGracePeriodSeconds");
        if is_readiness {
            errors.push(FieldError::invalid(path, seconds, "must not be set for readinessProbes"));
        } else if seconds <= 0 {
            errors.push(FieldError::invalid(path, seconds, "must be greater than 0"));
        }
    }
    if !is_readiness && let Some(threshold) = probe.success_threshold.filter(|threshold| *threshold != 1) {
        errors.push(FieldError::invalid(path.child("successThreshold"), threshold, "must be 1"));
    }
}

fn stop_signal(errors: &mut Errors, path: &Path, lifecycle: &Lifecycle, spec: &PodSpec) {
    let Some(signal) = lifecycle.stop_signal.as_deref() else { return };
    if spec.os.is_none() {
        errors.push(FieldError::forbidden(path.clone(), "may not be set for containers with empty `spec.os.name`"));
    }
    let is_real_time = signal.strip_prefix("SIGRTMIN").or(signal.strip_prefix("SIGRTMAX")).is_some_and(|offset| {
        let number = offset.trim_start_matches(['+', '-']);
        offset.is_empty() || number.parse::<u8>().is_ok_and(|number| number <= 15)
    });
    if !is_real_time && !SIGNALS.contains(&signal) {
        errors.push(FieldError::not_supported(path.clone(), signal, SIGNALS));
    }
}

/// Checks the handlers of a lifecycle.
pub fn lifecycle(errors: &mut Errors, path: &Path, lifecycle: &Lifecycle, grace: Option<i64>) {
    for (name, handler) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(handler) = handler {
            lifecycle_handler(errors, &path.child(name), handler, grace);
        }
    }
}

fn lifecycle_handler(errors: &mut Errors, path: &Path, hook: &LifecycleHandler, grace: Option<i64>) {
    let sleep = hook.sleep.as_ref().map(|sleep| (sleep, grace));
    handler(errors, path, hook.exec.as_ref(), hook.http_get.as_ref(), hook.tcp_socket.as_ref(), None, sleep);
}

fn handler(
    errors: &mut Errors,
    path: &Path,
    exec: Option<&ExecAction>,
    get: Option<&HTTPGetAction>,
    tcp: Option<&TCPSocketAction>,
    grpc: Option<&GRPCAction>,
    sleep: Option<(&SleepAction, Option<i64>)>,
) {
    let given = [
        ("exec", exec.is_some()),
        ("httpGet", get.is_some()),
        ("tcpSocket", tcp.is_some()),
        ("grpc", grpc.is_some()),
        ("sleep", sleep.is_some()),
    ];
    let given: Vec<&str> = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect();
    match given.as_slice() {
        [] => errors.push(FieldError::required(path.clone(), NO_HANDLER)),
        [_, more @ ..] => errors.extend(more.iter().map(|name| FieldError::forbidden(path.child(name), TWO_HANDLERS))),
    }
    if let Some(exec) = exec.filter(|exec| exec.command.as_ref().is_none_or(Vec::is_empty)) {
        required(errors, &path.child("exec").child("command"), exec.command.iter().flatten().next().map_or("", String::as_str));
    }
    if let Some(get) = get {
        http_get(errors, &path.child("httpGet"), get);
    }
    if let Some(tcp) = tcp {
        port_or_name(errors, &path.child("tcpSocket").child("port"), &tcp.port);
    }
    if let Some(grpc) = grpc {
        port(errors, &path.child("grpc").child("port"), i64::from(grpc.port));
    }
    if let Some((sleep, Some(grace))) = sleep
        && (sleep.seconds < 0 || sleep.seconds > grace)
    {
        let why = format!(
            "must be non-negative and less than terminationGracePeriodSeconds ({grace}). Additionally, sleep with zero duration is allowed"
        );
        errors.push(FieldError::invalid(path.child("sleep"), sleep.seconds, why));
    }
}

fn http_get(errors: &mut Errors, path: &Path, get: &HTTPGetAction) {
    required(errors, &path.child("path"), str_of(&get.path));
    port_or_name(errors, &path.child("port"), &get.port);
    required_one_of(errors, &path.child("scheme"), str_of(&get.scheme), &["HTTP", "HTTPS"]);
    for header in get.http_headers.iter().flatten() {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if header.name.is_empty() || !header.name.bytes().all(is_token) {
            errors.push(FieldError::invalid(
                path.child("httpHeaders"),
                header.name.as_str(),
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
            ));
        }
    }
}
