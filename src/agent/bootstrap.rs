//! Joining a cluster.
