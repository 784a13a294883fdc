//! The kinds of `batch/v1`.

pub mod cron_job;
pub mod job;
mod job_policy;
mod job_status;
pub mod schedule;
