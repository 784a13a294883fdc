//! The API as data: what each field means, without a server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod pod_fields;
