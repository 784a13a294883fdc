//! Job: pods that run to completion.

use k8s_openapi::api::batch::v1::Job;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static JOB: Definition<Job> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.batch.v1.Job", "batch/jobs", "job").in_all()
};
