//! state
/// The state at one revision.
#[derive(Clone)]
pub struct Snapshot;
