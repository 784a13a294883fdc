//! Every limit of the program in one place: sizes, counts, time-outs.

use std::time::Duration;

/// Largest request body, as in upstream's apiserver (3 MiB).
pub const REQUEST_BODY_BYTES: usize = 3 << 20;
/// Largest header block of a request.
pub const REQUEST_HEADER_BYTES: usize = 64 << 10;
/// Time a request other than a watch, log, exec, attach, proxy or port-forward may take.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Read requests served at one time; more get 429.
pub const INFLIGHT_READS: usize = 400;
/// Writing requests served at one time; more get 429.
pub const INFLIGHT_WRITES: usize = 400;
/// Watches open at one time; more get 429.
pub const WATCHES: usize = 20_000;
/// Connections open at one time on one listener.
pub const CONNECTIONS: usize = 16_384;

/// Revisions that the store can go back to.
pub const HISTORY_REVISIONS: usize = 100_000;
/// Age of the oldest revision that the store can go back to.
pub const HISTORY_AGE: Duration = Duration::from_secs(600);
/// Bytes of superseded values that the store keeps to go back to.
pub const HISTORY_BYTES: usize = 256 << 20;
/// Writes that wait for the log; more get 429.
pub const WRITE_QUEUE: usize = 4_096;
/// Bytes of writes that wait for the log; more get 429.
pub const WRITE_QUEUE_BYTES: usize = 64 << 20;
/// Time for a majority to confirm the leader, before a consistent read.
pub const BARRIER_TIMEOUT: Duration = Duration::from_secs(5);
/// Writes in one log entry.
pub const BATCH_WRITES: usize = 512;
/// Bytes of writes in one log entry.
pub const BATCH_BYTES: usize = 1 << 20;
/// Largest encoded object, as etcd's default request limit (1.5 MiB).
pub const OBJECT_BYTES: usize = 1_536 << 10;

/// Time a watch stays open if the client does not say (upstream: 30 to 60 minutes, at random).
pub const WATCH_TIMEOUT_MIN: Duration = Duration::from_secs(1_800);
/// Time between bookmarks on a quiet watch.
pub const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Time for one call to Docker other than pull, wait, stop and the streams.
pub const RUNTIME_CALL: Duration = Duration::from_secs(120);
/// Time for stopping all tasks at shutdown.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
