//! The life of a daemon: from a signal or a background task that failed to an orderly end.

use tokio::signal::unix::{SignalKind, signal};

use super::error::CmdError;
use super::notify;
use crate::rt::{TaskGroup, limits, memory};

/// Waits for SIGTERM, SIGINT or the end of a critical task, then stops all tasks.
///
/// # Errors
/// [`CmdError::Background`] when a critical task ended by itself.
pub async fn until_stopped(tasks: &TaskGroup) -> Result<(), CmdError> {
    memory::give_back_after_start(tasks);
    let token = tasks.token();
    tokio::select! {
        name = stop_signal() => tracing::info!(signal = name, "stopping; containers go on"),
        () = token.cancelled() => {}
    }
    notify::send("STOPPING=1");
    if !tasks.shutdown(limits::SHUTDOWN_GRACE).await {
        tracing::warn!("some tasks did not end in time");
    }
    tasks.failed().map_or(Ok(()), |name| Err(CmdError::Background(name)))
}

async fn stop_signal() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("cannot listen for signals");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
