//! The kinds of `apiregistration.k8s.io/v1`.

pub mod api_service;
