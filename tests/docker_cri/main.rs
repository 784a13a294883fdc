//! The container runtime and the pod network against the real thing: needs root, a Docker engine and the image `busybox`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod network;
mod runtime;
