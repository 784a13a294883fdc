//! Patches: JSON patch, JSON merge patch, strategic merge patch and the merge of server-side apply. Each takes the current object and
//! returns the new one.

pub mod apply;
pub mod json;
pub mod merge;
mod order;
pub mod strategic;
