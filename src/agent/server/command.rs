//! Exec and attach: the client's streams and those of the process, and the outcome told as upstream's kubelet tells it.

use std::sync::Arc;

use serde_json::{Deserializer, Value, json};
use tokio::io::AsyncRead;

use super::query::Query;
use super::{KubeletServer, lookup_error, upgrade_error};
use crate::api::ApiError;
use crate::cri::{ExecControl, ExecSession, ExecSpec, RuntimeError};
use crate::http::streams::{self, CommandStreams, InStream, OutStream, StreamStatus, Wanted};
use crate::http::{HttpRequest, HttpResponse};

/// Largest size message that is not complete yet.
const RESIZE_BYTES: usize = 4 << 10;

impl KubeletServer {
    /// Runs a command in a running container.
    pub(super) fn exec(
        &self,
        request: &mut HttpRequest,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &Query,
    ) -> Result<HttpResponse, ApiError> {
        let id = self.running(namespace, pod, container)?.0;
        let wanted = wanted(query, query.is_on(&["tty"]))?;
        let command: Vec<String> = query.all("command").map(str::to_owned).collect();
        if command.is_empty() {
            return Err(ApiError::bad_request("you must specify the command to execute"));
        }
        let spec = exec_spec(wanted, command);
        let runtime = Arc::clone(&self.runtime);
        streams::remote_command(request, wanted, &self.tasks, move |streams| async move {
            let session = runtime.exec(&id, &spec).await;
            serve(streams, session, Some(&spec.command)).await;
        })
        .map_err(upgrade_error)
    }

    /// Attaches to the first process of a running container.
    pub(super) fn attach(
        &self,
        request: &mut HttpRequest,
        namespace: &str,
        pod: &str,
        container: &str,
        query: &Query,
    ) -> Result<HttpResponse, ApiError> {
        let (id, has_tty) = self.running(namespace, pod, container)?;
        // A container with a terminal has one stream of output, whatever the client believes.
        let wanted = wanted(query, has_tty && query.is_on(&["tty"]))?;
        let spec = ExecSpec { tty: has_tty, ..exec_spec(wanted, Vec::new()) };
        let runtime = Arc::clone(&self.runtime);
        streams::remote_command(request, wanted, &self.tasks, move |streams| async move {
            let session = runtime.attach(&id, &spec).await;
            serve(streams, session, None).await;
        })
        .map_err(upgrade_error)
    }

    fn running(&self, namespace: &str, pod: &str, container: &str) -> Result<(String, bool), ApiError> {
        let lookup = self.pods.container(namespace, pod, container).map_err(lookup_error)?;
        let instance = lookup.running().map_err(lookup_error)?;
        Ok((instance.id.clone(), instance.tty))
    }
}

fn wanted(query: &Query, tty: bool) -> Result<Wanted, ApiError> {
    let stdin = query.is_on(&["input", "stdin"]);
    let (stdout, stderr) = (query.is_on(&["output", "stdout"]), query.is_on(&["error", "stderr"]));
    if !(stdin || stdout || stderr) {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(Wanted { stdin, stdout, stderr: stderr && !tty, tty })
}

fn exec_spec(wanted: Wanted, command: Vec<String>) -> ExecSpec {
    ExecSpec { command, stdin: wanted.stdin, stdout: wanted.stdout || wanted.tty, stderr: wanted.stderr, tty: wanted.tty }
}

/// Passes the streams until the process has closed its outputs, then tells how it ended. `command` is absent for attach, whose
/// outcome is not the process'.
async fn serve(streams: CommandStreams, session: Result<ExecSession, RuntimeError>, command: Option<&[String]>) {
    let CommandStreams { stdin, stdout, stderr, error, resize, status, closed, session: _open } = streams;
    let outcome = match session {
        Ok(session) => {
            let ExecSession { stdout: from_stdout, stderr: from_stderr, stdin: to_stdin, control } = session;
            let outputs = async {
                tokio::join!(copy_output(from_stdout, stdout.as_ref()), copy_output(from_stderr, stderr.as_ref()));
            };
            let inputs = async {
                tokio::join!(copy_input(stdin, to_stdin), follow_size(resize, &*control));
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = closed.cancelled() => return,
                () = outputs => {}
                () = inputs => {}
            }
            match command {
                Some(command) => control.exit_code().await.map(|code| exit_status(code, command)),
                None => Ok(success()),
            }
        }
        Err(error) => Err(error),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        let verb = if command.is_some() { "executing command in" } else { "attaching to" };
        ApiError::internal(format!("error {verb} container: {error}")).to_value()
    });
    for stream in [stdout, stderr].into_iter().flatten() {
        stream.end().await;
    }
    tell(error, status, &outcome).await;
}

async fn tell(error: OutStream, status: StreamStatus, outcome: &Value) {
    let text = match status {
        StreamStatus::Object => outcome.to_string(),
        StreamStatus::Text => outcome["message"].as_str().unwrap_or_default().to_owned(),
    };
    if !text.is_empty() && error.write(text).await.is_err() {
        tracing::debug!("the client has gone before the outcome");
    }
    error.end().await;
}

fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

fn exit_status(code: i32, command: &[String]) -> Value {
    if code == 0 {
        return success();
    }
    let words = format!("error executing command [{}], exit code {code}", command.join(" "));
    json!({
        "metadata": {},
        "status": "Failure",
        "message": format!("command terminated with non-zero exit code: {words}"),
        "reason": "NonZeroExitCode",
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}

/// What nobody wants is read all the same: the process must not wait for it, and its end is the end of the command.
async fn copy_output(from: Option<std::pin::Pin<Box<dyn AsyncRead + Send>>>, to: Option<&OutStream>) {
    let Some(mut from) = from else { return };
    let copied = match to {
        Some(to) => to.copy_from(&mut from).await,
        None => tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop),
    };
    if let Err(error) = copied {
        tracing::debug!(%error, "an output of a command broke");
    }
}

async fn copy_input(from: Option<InStream>, to: Option<std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    if let Err(error) = from.copy_to(&mut to).await {
        tracing::debug!(%error, "the command does not read its input any more");
    }
}

/// Sets the size of the terminal whenever the client says one.
async fn follow_size(resize: Option<InStream>, control: &dyn ExecControl) {
    let Some(mut resize) = resize else { return };
    let mut pending = Vec::new();
    while let Some(bytes) = resize.read().await {
        pending.extend_from_slice(&bytes);
        let (sizes, used) = sizes(&pending);
        pending.drain(..used);
        if pending.len() > RESIZE_BYTES {
            return;
        }
        // Only the last one counts.
        if let Some((columns, rows)) = sizes.last()
            && let Err(error) = control.resize(*columns, *rows).await
        {
            tracing::debug!(%error, "cannot resize a terminal");
        }
    }
}

/// The complete sizes at the begin of `bytes`, and how many bytes they took.
fn sizes(bytes: &[u8]) -> (Vec<(u16, u16)>, usize) {
    let mut values = Deserializer::from_slice(bytes).into_iter::<Value>();
    let mut sizes = Vec::new();
    let mut used = 0;
    while let Some(Ok(value)) = values.next() {
        used = values.byte_offset();
        let cells = |name: &str| value[name].as_u64().and_then(|cells| u16::try_from(cells).ok());
        sizes.extend(cells("Width").zip(cells("Height")).filter(|(columns, rows)| *columns > 0 && *rows > 0));
    }
    (sizes, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sizes_as_they_come() {
        let cases: [(&str, &[(u16, u16)], usize); 4] = [
            (r#"{"Width":80,"Height":24}"#, &[(80, 24)], 24),
            (r#"{"Width":80,"Height":24}{"Width":1"#, &[(80, 24)], 24),
            (r#"{"Width":0,"Height":24}"#, &[], 23),
            (r#"{"Wid"#, &[], 0),
        ];
        for (text, expected, used) in cases {
            assert_eq!(sizes(text.as_bytes()), (expected.to_vec(), used), "{text}");
        }
    }

    #[test]
    fn outcomes_as_the_kubelet_writes_them() {
        assert_eq!(exit_status(0, &[]), json!({ "metadata": {}, "status": "Success" }));
        let failed = exit_status(3, &["sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()]);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
    }
}
