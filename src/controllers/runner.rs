//! The one loop that runs every controller: watches fill its queue, workers take keys and reconcile them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tracing::Instrument;

use super::queue::Queue;
use super::{Controller, Error, Requeue, metrics};
use crate::client::informer::{Change, Informer};
use crate::client::{Cached, ClientError, ObjectKey};
use crate::rt::clock::SharedClock;
use crate::rt::{TaskGroup, clock};

/// Time for one reconcile; the key is tried again after it.
const RECONCILE: Duration = Duration::from_secs(120);

/// An object as a watch saw it: before and after.
pub struct Seen<'a, T> {
    pub old: Option<&'a T>,
    pub new: Option<&'a T>,
}

impl<'a, T> Seen<'a, T> {
    /// The states that there are, the old one first.
    pub fn states(&self) -> impl Iterator<Item = &'a T> {
        self.old.into_iter().chain(self.new)
    }

    /// The newest state: after a deletion, the last one.
    pub fn newest(&self) -> Option<&'a T> {
        self.new.or(self.old)
    }
}

/// What a controller watches.
pub struct Watches {
    tasks: TaskGroup,
    queue: Arc<Queue>,
    synced: Vec<BoxFuture<'static, ()>>,
}

impl Watches {
    /// Calls `map` for every change of the objects of an informer; it adds to the queue the keys that the change concerns.
    pub fn on<T: Cached>(&mut self, informer: &Arc<Informer<T>>, map: impl Fn(Seen<'_, T>, &Queue) + Send + 'static) {
        let (mut changes, queue, token) = (informer.subscribe(), Arc::clone(&self.queue), self.tasks.token());
        self.tasks.spawn(async move {
            while let Some(Some(change)) = token.run_until_cancelled(changes.next()).await {
                match &change {
                    Change::Applied { old, new } => map(Seen { old: old.as_deref(), new: Some(new) }, &queue),
                    Change::Deleted(old) => map(Seen { old: Some(old), new: None }, &queue),
                    Change::Synced => {}
                }
            }
        });
        self.after(informer);
    }

    /// Waits for the informer before the first reconcile, without watching it.
    pub fn after<T: Cached>(&mut self, informer: &Arc<Informer<T>>) {
        let informer = Arc::clone(informer);
        self.synced.push(Box::pin(async move { informer.synced().await }));
    }

    /// The queue itself, for a controller that adds keys on other occasions.
    pub fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }
}

/// Starts a controller in `tasks`.
pub(super) fn start(tasks: &TaskGroup, controller: Arc<dyn Controller>, clock: &SharedClock) {
    let queue = Arc::new(Queue::new(controller.name()));
    let mut watches = Watches { tasks: tasks.clone(), queue: Arc::clone(&queue), synced: Vec::new() };
    controller.watch(&mut watches);
    let (hurried, mut steps, token) = (Arc::clone(&queue), clock.steps(), tasks.token());
    tasks.spawn(async move {
        while let Some(Ok(())) = token.run_until_cancelled(steps.changed()).await {
            hurried.hurry();
        }
    });
    let (tasks, synced) = (tasks.clone(), watches.synced);
    tasks.clone().spawn(async move {
        if tasks.token().run_until_cancelled(join_all(synced)).await.is_none() {
            return;
        }
        tracing::debug!(controller = controller.name(), "caches are synced");
        for worker in 0..controller.workers() {
            let (controller, queue, token) = (Arc::clone(&controller), Arc::clone(&queue), tasks.token());
            tasks.critical(format!("controller {} {worker}", controller.name()), async move {
                token.run_until_cancelled(work(&*controller, &queue)).await;
            });
        }
    });
}

async fn work(controller: &dyn Controller, queue: &Queue) {
    let worked = metrics::of(controller.name()).worked;
    loop {
        let key = queue.next().await;
        let started = clock::instant();
        let span = tracing::info_span!("reconcile", controller = controller.name(), %key);
        let outcome = tokio::time::timeout(RECONCILE, controller.reconcile(&key).instrument(span.clone())).await;
        span.in_scope(|| settle(queue, &key, outcome.unwrap_or(Err(Error::TimedOut))));
        worked.observe(started.elapsed().as_secs_f64());
        queue.done(&key);
    }
}

fn settle(queue: &Queue, key: &ObjectKey, outcome: Result<Requeue, Error>) {
    match outcome {
        Ok(requeue) => {
            queue.forget(key);
            if let Requeue::After(delay) = requeue {
                queue.add_after(key.clone(), delay);
            }
        }
        Err(error) => {
            let expected = match &error {
                Error::Client(client) => is_expected(client),
                Error::Incomplete(_) => true,
                Error::Invalid { .. } | Error::TimedOut => false,
            };
            let delay_ms = queue.retry(key.clone()).as_millis();
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            if expected {
                tracing::debug!(%error, delay_ms, "trying again");
            } else {
                tracing::warn!(%error, cause, delay_ms, "trying again");
            }
        }
    }
}

/// Errors of a stale cache: the next try sees the newer state.
fn is_expected(error: &ClientError) -> bool {
    error.is_conflict() || error.is_already_exists() || error.is_not_found()
}
