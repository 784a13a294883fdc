//! The engine's event stream: filtered by owner, reconnected for ever, never with a gap that goes unsaid.
//!
//! Before it listens, it makes sure that the engine answers; it listens from that moment on (the engine keeps the last 256
//! events), and then says [`RuntimeEvent::Resync`]. So a reader that lists upon `Resync` misses nothing, the first time too.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::{Stream, StreamExt, stream};
use jiff::Timestamp;

use super::Engine;
use crate::cri::{EventStream, RuntimeError, RuntimeEvent, labels};
use crate::rt::{Backoff, Clock, SystemClock};

/// Time for the engine to answer before the stream is opened.
const PING: Duration = Duration::from_secs(10);
/// What changes a container; exec, attach, resize and health events are left out.
const ACTIONS: [&str; 9] = ["create", "start", "die", "oom", "destroy", "pause", "unpause", "update", "rename"];

type Messages = Pin<Box<dyn Stream<Item = Result<EventMessage, Error>> + Send>>;

/// Where the stream stands between two events.
struct Follower {
    engine: Arc<Engine>,
    /// Open while the engine is there.
    messages: Option<Messages>,
    said_down: bool,
    backoff: Backoff,
}

impl Engine {
    pub(super) fn follow_events(self: &Arc<Self>) -> EventStream {
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let follower = Follower { engine: Arc::clone(self), messages: None, said_down: false, backoff };
        Box::pin(stream::unfold(follower, |mut follower| async move {
            let event = follower.next().await;
            Some((event, follower))
        }))
    }

    /// Opens the stream from this moment on.
    async fn listen(&self) -> Result<Messages, RuntimeError> {
        let client = self.client()?;
        let since = SystemClock.now();
        self.within("ping", PING, client.ping()).await?;
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("label", vec![format!("{}={}", labels::OWNER, self.owner)]),
            ("event", ACTIONS.map(str::to_owned).to_vec()),
        ]);
        let options = EventsOptionsBuilder::new().since(&go_time(since)).filters(&filters).build();
        Ok(Box::pin(client.events(Some(options))))
    }
}

impl Follower {
    async fn next(&mut self) -> RuntimeEvent {
        loop {
            match &mut self.messages {
                Some(messages) => match messages.next().await {
                    Some(Ok(message)) => {
                        if let Some(event) = container_event(message) {
                            return event;
                        }
                    }
                    ended => {
                        tracing::debug!(?ended, "Docker's event stream ended");
                        self.messages = None;
                    }
                },
                None => match self.engine.listen().await {
                    Ok(messages) => {
                        self.messages = Some(messages);
                        self.said_down = false;
                        self.backoff.reset();
                        return RuntimeEvent::Resync;
                    }
                    Err(error) if !self.said_down => {
                        self.said_down = true;
                        return RuntimeEvent::Down(error.to_string());
                    }
                    Err(_) => tokio::time::sleep(self.backoff.next_delay()).await,
                },
            }
        }
    }
}

fn container_event(message: EventMessage) -> Option<RuntimeEvent> {
    let actor = message.actor?;
    let labels = actor.attributes.unwrap_or_default().into_iter().collect();
    Some(RuntimeEvent::Container { id: actor.id?, labels, action: message.action? })
}

/// Seconds and nanoseconds, as the engine reads points in time.
fn go_time(time: Timestamp) -> String {
    format!("{}.{:09}", time.as_second(), time.subsec_nanosecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_time_as_the_engine_reads_it() {
        let time: Timestamp = "2026-11-22T22:59:50.000871Z".parse().unwrap();
        assert_eq!(go_time(time), "1795388390.000871000");
    }
}
