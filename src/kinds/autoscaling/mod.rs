//! The kinds of `autoscaling/v1` and `autoscaling/v2`, which share their objects.

pub mod v1;
pub mod v2;
