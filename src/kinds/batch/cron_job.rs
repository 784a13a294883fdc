//! CronJob: Jobs on a schedule.

use k8s_openapi::api::batch::v1::CronJob;

use crate::api::kind::Subresource;
use crate::kinds::typed::Definition;

/// The kind.
pub static CRON_JOB: Definition<CronJob> = Definition {
    subresources: &[Subresource::Status],
    ..Definition::namespaced("io.k8s.api.batch.v1.CronJob", "batch/cronjobs", "cronjob").short(&["cj"]).in_all()
};
