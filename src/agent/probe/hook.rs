//! Lifecycle hooks: postStart and preStop, by command, HTTP or sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;

use super::{Prober, Target, http};

/// Runs a hook to its end; the caller bounds the time.
///
/// # Errors
/// What went wrong, in words for the event.
pub async fn run(prober: &Prober, handler: &LifecycleHandler, target: &Target<'_>) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        return prober.exec(target.id, exec.command.clone().unwrap_or_default(), None).await;
    }
    if let Some(get) = &handler.http_get {
        return http::get(&prober.once, get, target, "kube-lifecycle/1.36").await.map(drop).map_err(|ill| ill.words);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("invalid handler: neither exec nor httpGet nor sleep (tcpSocket is no lifecycle handler)".to_owned())
}
