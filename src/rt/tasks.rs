//! The only place that spawns. A [`TaskGroup`] owns its tasks: who spawns, awaits.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A set of tasks with one shutdown token. Clones share the set.
///
/// A task started with [`critical`](Self::critical) must run until the token is cancelled: if it ends sooner, the group is
/// cancelled and [`failed`](Self::failed) names it. A task started with [`spawn`](Self::spawn) may end whenever it is done
/// (a connection, a request, a pod worker).
#[derive(Clone, Debug)]
pub struct TaskGroup {
    tracker: TaskTracker,
    token: CancellationToken,
    failed: Arc<Mutex<Option<String>>>,
}

impl Default for TaskGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl TaskGroup {
    /// An empty group with a token of its own.
    pub fn new() -> Self {
        Self::with_token(CancellationToken::new())
    }

    fn with_token(token: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), token, failed: Arc::default() }
    }

    /// A group whose token is cancelled with this one's, and which can be shut down alone.
    pub fn child(&self) -> Self {
        Self { tracker: TaskTracker::new(), token: self.token.child_token(), failed: Arc::clone(&self.failed) }
    }

    /// The token that every loop of the group selects on.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs a task that may end when its work is done.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(future);
    }

    /// Runs a task that ends only at shutdown; if it ends or panics sooner, the group is cancelled.
    pub fn critical(&self, name: impl Into<String>, future: impl Future<Output = ()> + Send + 'static) {
        let (name, group) = (name.into(), self.clone());
        let guard = CriticalGuard { name, group };
        self.tracker.spawn(async move {
            future.await;
            drop(guard);
        });
    }

    /// Runs blocking work (SQLite, netns, file trees) on the blocking pool.
    ///
    /// # Errors
    /// Only when the work panicked or the runtime is going down.
    pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, tokio::task::JoinError> {
        #[expect(clippy::disallowed_methods, reason = "this is the seam that all others use")]
        tokio::task::spawn_blocking(work).await
    }

    /// Asks all tasks to stop.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// The critical task that ended too soon, if one did.
    pub fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    /// Cancels, then waits until every task has ended or `grace` is over. Returns whether all had ended.
    pub async fn shutdown(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(grace, self.tracker.wait()).await.is_ok()
    }
}

/// Notices the end of a critical task, by return or by panic.
struct CriticalGuard {
    name: String,
    group: TaskGroup,
}

impl Drop for CriticalGuard {
    fn drop(&mut self) {
        if !self.group.token.is_cancelled() {
            tracing::error!(task = %self.name, "a background task ended; shutting down");
            self.group.failed.lock().get_or_insert_with(|| self.name.clone());
            self.group.token.cancel();
        }
    }
}
