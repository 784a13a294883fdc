//! watch
/// Events under a prefix.
pub struct Watch;
