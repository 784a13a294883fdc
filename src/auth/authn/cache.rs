//! Tokens that were verified a moment ago: a signature costs more than the request behind it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use ring::digest::{SHA256, digest};

use crate::auth::UserInfo;
use crate::kinds::core;
use crate::store::{self, Snapshot};

/// Time after which a token is looked at anew, as upstream's token cache.
const LIFETIME: Duration = Duration::from_secs(10);
/// Tokens that are remembered; the cache is emptied when there are more.
const CAPACITY: usize = 4_096;

/// The buckets whose objects a token may be bound to, as they were when it was verified. Pods are left out because they change
/// all the time: a token outlives its pod by [`LIFETIME`].
#[derive(Clone, PartialEq)]
pub(super) struct Mark([store::Mark; 2]);

impl Mark {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let buckets = [core::service_account::SERVICE_ACCOUNT.bucket, core::secret::SECRET.bucket];
        Self(buckets.map(|bucket| snapshot.mark(bucket)))
    }
}

struct Remembered {
    user: Arc<UserInfo>,
    until: Timestamp,
}

/// What was verified, by the hash of the token, and the state of the store it was verified against.
type Verified = (Option<Mark>, HashMap<[u8; 32], Remembered>);

#[derive(Default)]
pub(super) struct Cache(Mutex<Verified>);

fn key(token: &str) -> [u8; 32] {
    let mut key = [0; 32];
    key.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    key
}

impl Cache {
    /// The user of a token that was verified lately, if nothing that it could be bound to was written since.
    pub(super) fn get(&self, token: &str, mark: &Mark, now: Timestamp) -> Option<Arc<UserInfo>> {
        let key = key(token);
        let cache = self.0.lock();
        if cache.0.as_ref() != Some(mark) {
            return None;
        }
        cache.1.get(&key).filter(|found| found.until > now).map(|found| Arc::clone(&found.user))
    }

    pub(super) fn put(&self, token: &str, mark: Mark, now: Timestamp, user: &Arc<UserInfo>) {
        let until = now.saturating_add(LIFETIME).unwrap_or(now);
        let mut cache = self.0.lock();
        if cache.0.as_ref() != Some(&mark) || cache.1.len() >= CAPACITY {
            cache.1.clear();
            cache.0 = Some(mark);
        }
        cache.1.insert(key(token), Remembered { user: Arc::clone(user), until });
    }
}
