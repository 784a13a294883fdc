//! Raw byte tunnels: what two upgraded connections (SPDY, WebSocket) say to each other is passed on unseen.

use ::http::StatusCode;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::{HttpRequest, HttpResponse};
use crate::rt::TaskGroup;

/// Bytes held in each direction.
const BUFFER_BYTES: usize = 64 << 10;

/// Takes the future connection out of a client's request, before that request is passed on.
pub fn upgrade_of(request: &mut HttpRequest) -> Option<OnUpgrade> {
    request.extensions_mut().remove::<OnUpgrade>()
}

/// If `response` switches protocols, joins its connection with the client's in a task of `tasks`. The response is then to be
/// sent to the client as it is.
pub fn join(client: Option<OnUpgrade>, response: &mut HttpResponse, tasks: &TaskGroup) {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return;
    }
    let (Some(client), Some(backend)) = (client, response.extensions_mut().remove::<OnUpgrade>()) else { return };
    let token = tasks.token();
    tasks.spawn(async move { copy(client, backend, token).await });
}

async fn copy(client: OnUpgrade, backend: OnUpgrade, token: CancellationToken) {
    let joined = async {
        let (client, backend) = tokio::try_join!(client, backend)?;
        let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER_BYTES, BUFFER_BYTES).await?;
        Ok::<_, super::BoxError>(())
    };
    tokio::select! {
        () = token.cancelled() => {}
        ended = joined => if let Err(error) = ended {
            tracing::debug!(%error, "a tunnel broke");
        }
    }
}
