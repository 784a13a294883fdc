//! Commands in running containers, and attaching to their first process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ExecConfig;
use bollard::query_parameters::{ResizeContainerTTYOptionsBuilder, ResizeExecOptionsBuilder};

use super::Engine;
use super::hijack::{Hijacked, boxed_stdin, hijack};
use crate::cri::{ExecControl, ExecSession, ExecSpec, RuntimeError, State};
use crate::rt::limits::RUNTIME_CALL;

/// The outputs may end a moment before the engine knows the exit code.
const EXIT_CODE_WAIT: Duration = Duration::from_secs(10);
/// An exec that was just started has no terminal yet for a moment.
const RESIZE_WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);
/// One resize may block in the engine for ten seconds.
const RESIZE_CALL: Duration = Duration::from_secs(15);

impl Engine {
    pub(super) async fn exec_in(self: &Arc<Self>, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        let client = self.client()?;
        let config = ExecConfig {
            attach_stdin: Some(spec.stdin),
            attach_stdout: Some(spec.stdout),
            attach_stderr: Some(spec.stderr && !spec.tty),
            tty: Some(spec.tty),
            cmd: Some(spec.command.clone()),
            ..ExecConfig::default()
        };
        let created = self.within("create exec", RUNTIME_CALL, client.create_exec(id, config)).await?;
        let body = format!("{{\"Detach\":false,\"Tty\":{}}}", spec.tty);
        let stream = self.take_over(&format!("/exec/{}/start", created.id), &body).await?;
        let control = Target { engine: Arc::clone(self), id: created.id, is_exec: true };
        Ok(self.session(stream, spec, spec.tty, control))
    }

    pub(super) async fn attach_to(self: &Arc<Self>, id: &str, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        let detail = self.inspect_by_id(id).await?;
        let path = format!(
            "/containers/{}/attach?stream=1&stdin={}&stdout={}&stderr={}",
            detail.id,
            u8::from(spec.stdin),
            u8::from(spec.stdout),
            u8::from(spec.stderr && !detail.tty)
        );
        let stream = self.take_over(&path, "").await?;
        let control = Target { engine: Arc::clone(self), id: detail.id, is_exec: false };
        Ok(self.session(stream, spec, detail.tty, control))
    }

    async fn take_over(&self, path: &str, body: &str) -> Result<Hijacked, RuntimeError> {
        let call = hijack(&self.socket, path, body);
        match tokio::time::timeout(RUNTIME_CALL, call).await {
            Ok(result) => result,
            Err(_) => Err(RuntimeError::Timeout { call: "attach", after: RUNTIME_CALL }),
        }
    }

    fn session(&self, stream: Hijacked, spec: &ExecSpec, tty: bool, control: Target) -> ExecSession {
        let ((stdout, stderr), stdin) = stream.split(tty, spec.stdin, &self.tasks);
        ExecSession {
            stdout: Some(stdout),
            stderr: stderr.filter(|_| spec.stderr),
            stdin: stdin.map(boxed_stdin),
            control: Arc::new(control),
        }
    }
}

/// What is executed or attached to.
struct Target {
    engine: Arc<Engine>,
    /// Of the exec, or of the container.
    id: String,
    is_exec: bool,
}

impl Target {
    async fn resize_once(&self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        let client = self.engine.client()?;
        if self.is_exec {
            let options = ResizeExecOptionsBuilder::new().w(i32::from(columns)).h(i32::from(rows)).build();
            return self.engine.within("resize", RESIZE_CALL, client.resize_exec(&self.id, options)).await;
        }
        let options = ResizeContainerTTYOptionsBuilder::new().w(i32::from(columns)).h(i32::from(rows)).build();
        self.engine.within("resize", RESIZE_CALL, client.resize_container_tty(&self.id, options)).await
    }
}

#[async_trait]
impl ExecControl for Target {
    async fn resize(&self, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        let until = crate::rt::clock::instant() + RESIZE_WAIT;
        loop {
            match self.resize_once(columns, rows).await {
                Err(RuntimeError::Failed(_) | RuntimeError::NotFound(_)) if crate::rt::clock::instant() < until => {
                    tokio::time::sleep(POLL).await;
                }
                result => return result,
            }
        }
    }

    async fn kill(&self) -> Result<(), RuntimeError> {
        if !self.is_exec {
            return Ok(());
        }
        let client = self.engine.client()?;
        let exec = self.engine.within("inspect exec", RUNTIME_CALL, client.inspect_exec(&self.id)).await?;
        let (pid, container) = (exec.pid.unwrap_or(0), exec.container_id.unwrap_or_default());
        let Some(pid) = i32::try_from(pid).ok().filter(|pid| *pid > 1 && exec.running == Some(true)) else { return Ok(()) };
        // The engine has no call for this. That the process is in the container's cgroup shows that its number means the same
        // here as there.
        let cgroup = tokio::fs::read_to_string(format!("/proc/{pid}/cgroup")).await;
        if container.is_empty() || !cgroup.is_ok_and(|text| text.contains(&container)) {
            return Ok(());
        }
        let failed = |error: nix::errno::Errno| RuntimeError::Failed(format!("kill {pid}: {error}"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).map_err(failed)
    }

    async fn exit_code(&self) -> Result<i32, RuntimeError> {
        if !self.is_exec {
            let detail = self.engine.inspect_by_id(&self.id).await?;
            return Ok(if detail.state == State::Running { 0 } else { detail.exit_code });
        }
        let client = self.engine.client()?;
        let until = crate::rt::clock::instant() + EXIT_CODE_WAIT;
        let mut delay = Duration::from_millis(1);
        loop {
            let exec = self.engine.within("inspect exec", RUNTIME_CALL, client.inspect_exec(&self.id)).await?;
            match exec.exit_code {
                Some(code) if exec.running != Some(true) => return Ok(i32::try_from(code).unwrap_or(-1)),
                _ if crate::rt::clock::instant() >= until => {
                    return Err(RuntimeError::Timeout { call: "exit of the command", after: EXIT_CODE_WAIT });
                }
                _ => tokio::time::sleep(delay).await,
            }
            delay = (delay * 2).min(Duration::from_millis(200));
        }
    }
}
