//! Probes and lifecycle hooks: one look into a container, by command, HTTP, TCP or gRPC. When to look is the pod worker's matter.

pub mod hook;

mod grpc;
mod http;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::cri::{ExecSpec, Runtime};
use crate::http::once::Once;
use crate::http::tls::{ClientTls, TlsError, Trust};
use crate::rt::TaskGroup;

/// Most bytes of a command's or a server's answer that are kept for the event.
const OUTPUT_BYTES: usize = 10 << 10;
const AGENT: &str = "kube-probe/1.36";

/// What a look found: success, perhaps with a warning, or what is wrong.
type Verdict = Result<Option<String>, Ill>;

/// What is wrong with a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ill {
    /// In the kubelet's words: the text after `Readiness probe failed: `.
    pub words: String,
    /// Nobody listens on the port, so nobody was asked: what a server looks like that has not started yet.
    pub is_refused: bool,
}

impl Ill {
    fn of(words: String, cause: &(dyn std::error::Error + 'static)) -> Self {
        let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        let mut causes = std::iter::successors(Some(cause), |error| error.source());
        let is_refused = causes.any(|error| error.downcast_ref().is_some_and(refused));
        Self { words, is_refused }
    }
}

impl From<String> for Ill {
    fn from(words: String) -> Self {
        Self { words, is_refused: false }
    }
}

/// Looks into containers.
pub struct Prober {
    runtime: Arc<dyn Runtime>,
    once: Once,
}

impl Prober {
    /// A prober over a runtime; its connections are tasks of `tasks`. HTTPS probes verify no certificate, as upstream.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(runtime: Arc<dyn Runtime>, tasks: TaskGroup) -> Result<Self, TlsError> {
        let tls = ClientTls::new(&Trust::Insecure, None)?;
        Ok(Self { runtime, once: Once::new(tls, tasks) })
    }

    /// Looks once. A success may come with a warning.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self, probe: &Probe, target: &Target<'_>) -> Verdict {
        let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return Ok(self.exec(target.id, command, Some(timeout)).await.map(|()| None)?);
        }
        let mut late = "context deadline exceeded".to_owned();
        let look = async {
            if let Some(get) = &probe.http_get {
                let url = http::target_url(get, target)?;
                late = format!("Get \"{url}\": {late} (Client.Timeout exceeded while awaiting headers)");
                http::get(&self.once, get, target, AGENT).await
            } else if let Some(tcp) = &probe.tcp_socket {
                let host = tcp.host.clone().filter(|host| !host.is_empty());
                let port = port(&tcp.port, target.container)?;
                let host = target.host(host)?;
                late = format!("dial tcp {host}:{port}: i/o timeout");
                tcp_connect(&host, port).await.map(|()| None)
            } else if let Some(grpc) = &probe.grpc {
                let service = grpc.service.as_deref().unwrap_or("");
                late = format!("timeout: health rpc did not complete within {}s", timeout.as_secs());
                grpc::check(&self.once, &target.host(None)?, u16::try_from(grpc.port).unwrap_or(0), service).await
            } else {
                Err("missing probe handler".to_owned().into())
            }
        };
        let looked = tokio::time::timeout(timeout, look).await;
        looked.unwrap_or_else(|_| Err(late.into()))
    }

    /// Runs a command in a container; one that takes too long is ended.
    async fn exec(&self, id: &str, command: Vec<String>, timeout: Option<Duration>) -> Result<(), String> {
        let spec = ExecSpec { command, stdin: false, stdout: true, stderr: true, tty: false };
        let session = self.runtime.exec(id, &spec).await.map_err(|error| error.to_string())?;
        let run = async {
            let (stdout, stderr) = futures_util::future::join(read(session.stdout), read(session.stderr)).await;
            match session.control.exit_code().await {
                Ok(0) => Ok(()),
                Ok(code) if stdout.is_empty() && stderr.is_empty() => Err(format!("command terminated with exit code {code}")),
                Ok(_) => Err(format!("{stdout}{stderr}")),
                Err(error) => Err(error.to_string()),
            }
        };
        let Some(timeout) = timeout else { return run.await };
        match tokio::time::timeout(timeout, run).await {
            Ok(result) => result,
            Err(_) => {
                if let Err(error) = session.control.kill().await {
                    tracing::debug!(id, %error, "a command that hangs was not ended");
                }
                Err(format!("command timed out: command timed out after {}s", timeout.as_secs()))
            }
        }
    }
}

/// The container that is looked into.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub container: &'a Container,
    pub id: &'a str,
    pub pod_ip: Option<IpAddr>,
}

impl Target<'_> {
    fn host(&self, named: Option<String>) -> Result<String, String> {
        named.or_else(|| self.pod_ip.map(|ip| ip.to_string())).ok_or_else(|| "the pod has no address".to_owned())
    }
}

/// The begin of what a command prints, read to its end.
async fn read(stream: Option<std::pin::Pin<Box<dyn AsyncRead + Send>>>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let kept = (&mut stream).take(OUTPUT_BYTES as u64).read_to_end(&mut bytes).await;
        let rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        // What cannot be read is no reason to call the container unhealthy; its exit code decides.
        tracing::trace!(?kept, ?rest, "output of a command");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|_| format!("invalid port number: {number}")),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
            let number = named.or_else(|| name.parse().ok()).ok_or_else(|| format!("couldn't find port: {name}"))?;
            u16::try_from(number).map_err(|_| format!("invalid port number: {number}"))
        }
    }
}

async fn tcp_connect(host: &str, port: u16) -> Result<(), Ill> {
    let connected = tokio::net::TcpStream::connect((host, port)).await;
    connected.map(drop).map_err(|error| Ill::of(format!("dial tcp {host}:{port}: {error}"), &error))
}

#[cfg(test)]
mod tests;
