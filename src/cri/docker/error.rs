//! From bollard's errors to [`RuntimeError`], with Docker's own words; and the deadline on every call.

use std::future::Future;
use std::time::Duration;

use bollard::errors::Error;

use super::Engine;
use crate::cri::RuntimeError;

impl Engine {
    /// Awaits a call with a deadline and translates its error.
    pub(super) async fn within<T>(
        &self,
        call: &'static str,
        deadline: Duration,
        future: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(deadline, future).await {
            Ok(result) => result.map_err(|error| self.explain(error)),
            Err(_) => Err(RuntimeError::Timeout { call, after: deadline }),
        }
    }

    /// What an error of bollard means here.
    pub(super) fn explain(&self, error: Error) -> RuntimeError {
        match error {
            Error::DockerResponseServerError { status_code, message } => by_status(status_code, message),
            Error::DockerStreamError { error } => by_words(error),
            Error::SocketNotFoundError(_) => self.unreachable("no such socket; is the Docker daemon running?"),
            Error::IOError { err } => self.unreachable(innermost(&err)),
            Error::HyperResponseError { err } => self.unreachable(innermost(&err)),
            Error::HyperLegacyError { err } => self.unreachable(innermost(&err)),
            Error::RequestTimeoutError => self.unreachable("no answer"),
            other => RuntimeError::Failed(other.to_string()),
        }
    }

    pub(super) fn unreachable(&self, why: impl std::fmt::Display) -> RuntimeError {
        RuntimeError::Unreachable { socket: self.socket.display().to_string(), why: why.to_string() }
    }
}

/// The error that an HTTP status of the engine stands for.
pub(super) fn by_status(status: u16, message: String) -> RuntimeError {
    match status {
        404 => RuntimeError::NotFound(message),
        409 => RuntimeError::Conflict(message),
        _ => RuntimeError::Failed(message),
    }
}

/// The error that a message within a stream (of a pull) stands for.
fn by_words(message: String) -> RuntimeError {
    let missing = ["not found", "manifest unknown", "does not exist"].iter().any(|words| message.contains(words));
    if missing { RuntimeError::NotFound(message) } else { RuntimeError::Failed(message) }
}

/// The words of the cause at the bottom, where the operating system speaks.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_and_words() {
        let text = "x".to_owned();
        assert_eq!(by_status(404, text.clone()), RuntimeError::NotFound(text.clone()));
        assert_eq!(by_status(409, text.clone()), RuntimeError::Conflict(text.clone()));
        assert_eq!(by_status(500, text.clone()), RuntimeError::Failed(text.clone()));
        let missing = "manifest for nginx:9 not found: manifest unknown".to_owned();
        assert_eq!(by_words(missing.clone()), RuntimeError::NotFound(missing));
        assert_eq!(by_words(text.clone()), RuntimeError::Failed(text));
    }
}
