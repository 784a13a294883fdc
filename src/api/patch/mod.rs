//! Patches: JSON patch, JSON merge patch and strategic merge patch. Each takes the current object and returns the new one.

pub mod json;
pub mod merge;
mod order;
pub mod strategic;
