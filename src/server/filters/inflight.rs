//! How many requests are served at one time; who comes beyond gets 429. Follows upstream's `maxinflight` filter.

use std::sync::Arc;

use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::ApiError;
use crate::auth::UserInfo;
use crate::http::HttpResponse;
use crate::rt::limits;
use crate::server::RequestInfo;

/// Slots for reads, writes and watches.
pub struct Inflight {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    watches: Arc<Semaphore>,
}

impl Default for Inflight {
    fn default() -> Self {
        let slots = |count| Arc::new(Semaphore::new(count));
        Self { reads: slots(limits::INFLIGHT_READS), writes: slots(limits::INFLIGHT_WRITES), watches: slots(limits::WATCHES) }
    }
}

/// A place among the requests that are served; given back when this is dropped.
#[derive(Debug)]
pub struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    streams: bool,
}

impl Inflight {
    /// Takes a slot. `system:masters` and streams other than watches are not counted, as upstream has it.
    ///
    /// # Errors
    /// 429 with `Retry-After: 1`.
    pub fn enter(&self, info: &RequestInfo, user: &UserInfo) -> Result<Slot, ApiError> {
        let watch = info.verb == "watch";
        if (info.is_long_running() && !watch) || user.is_master() {
            return Ok(Slot { permit: None, streams: false });
        }
        let slots = match (watch, info.is_read_only()) {
            (true, _) => &self.watches,
            (_, true) => &self.reads,
            (_, false) => &self.writes,
        };
        match Arc::clone(slots).try_acquire_owned() {
            Ok(permit) => Ok(Slot { permit: Some(permit), streams: watch }),
            Err(_) => Err(ApiError::too_many_requests("Too many requests, please try again later.", 1)),
        }
    }
}

impl Slot {
    /// Holds the slot of a watch until its answer has ended; any other is given back now.
    pub fn until_sent(self, response: HttpResponse) -> HttpResponse {
        let Some(permit) = self.permit.filter(|_| self.streams) else { return response };
        response.map(|body| {
            let held = body.map_frame(move |frame| {
                // The closure owns the permit, and is dropped with the body.
                let _permit = &permit;
                frame
            });
            held.boxed_unsync()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_house_says_so() {
        let inflight = Inflight { writes: Arc::new(Semaphore::new(1)), ..Inflight::default() };
        let info = |verb: &str| RequestInfo { verb: verb.to_owned(), is_resource: true, ..RequestInfo::default() };
        let jane = UserInfo::new("jane", &[]);
        let slot = inflight.enter(&info("create"), &jane).unwrap();
        let refused = inflight.enter(&info("create"), &jane).unwrap_err();
        assert_eq!((refused.code, refused.details.retry_after_seconds), (429, Some(1)));
        assert!(inflight.enter(&info("get"), &jane).is_ok());
        assert!(inflight.enter(&info("create"), &UserInfo::new("root", &["system:masters"])).is_ok());
        drop(slot);
        assert!(inflight.enter(&info("create"), &jane).is_ok());
    }
}
