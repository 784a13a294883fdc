//! Serving certificates that never go stale: issued at every start, issued again long before they end, shown without a restart.

use std::sync::Arc;

use tokio::sync::watch;

use super::error::CmdError;
use crate::http::tls::ServerTls;
use crate::pki::{self, Identity, Pki};
use crate::rt::TaskGroup;
use crate::rt::clock::SharedClock;

/// A certificate for a server that answers to `sans`; the receiver has a new one whenever it was renewed.
///
/// # Errors
/// When a name is not fit for a certificate.
pub fn serving(
    roots: &Arc<Pki>,
    common_name: &str,
    sans: Vec<String>,
    clock: &SharedClock,
    tasks: &TaskGroup,
) -> Result<watch::Receiver<Identity>, CmdError> {
    let (sender, receiver) = watch::channel(roots.serving(common_name, &sans, clock.now())?);
    let (roots, clock, common_name, token) = (Arc::clone(roots), Arc::clone(clock), common_name.to_owned(), tasks.token());
    tasks.critical(format!("renewal of {common_name}"), async move {
        while token.run_until_cancelled(tokio::time::sleep(pki::LEAF_RENEWAL)).await.is_some() {
            match roots.serving(&common_name, &sans, clock.now()) {
                Ok(renewed) => drop(sender.send_replace(renewed)),
                Err(error) => tracing::error!(%error, common_name, "cannot renew a certificate"),
            }
        }
    });
    Ok(receiver)
}

/// TLS with the certificate that is there now, and with each that follows.
///
/// # Errors
/// When certificate, key or CA cannot be used.
pub fn server_tls(
    mut serving: watch::Receiver<Identity>,
    client_ca_pem: &str,
    tasks: &TaskGroup,
) -> Result<Arc<ServerTls>, CmdError> {
    let first = serving.borrow_and_update().clone();
    let tls = Arc::new(ServerTls::new(&first.chain_pem, &first.key_pem, Some(client_ca_pem))?);
    let (shown, token) = (Arc::clone(&tls), tasks.token());
    tasks.spawn(async move {
        while let Some(Ok(())) = token.run_until_cancelled(serving.changed()).await {
            let renewed = serving.borrow_and_update().clone();
            if let Err(error) = shown.replace(&renewed.chain_pem, &renewed.key_pem) {
                tracing::error!(%error, "cannot use a renewed certificate");
            }
        }
    });
    Ok(tls)
}
