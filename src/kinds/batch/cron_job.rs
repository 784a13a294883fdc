//! CronJob: Jobs on a schedule.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::CronJob;
use serde_json::Value;

use super::job;
use super::schedule::{self, Schedule};
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::kinds::check::{maybe_not_negative, one_of, required, str_of};
use crate::kinds::core::pod::template_warnings;
use crate::kinds::core::pod_spec::defaults::{self, text, value};
use crate::kinds::print::{NONE, age, boolean, containers, name, or_none, selector, since};
use crate::kinds::typed::Definition;

/// Room for the suffix of the names of jobs.
const NAME_MAX: usize = 52;

/// The kind.
pub static CRON_JOB: Definition<CronJob> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Schedule"),
        Column::text("Timezone"),
        Column { kind: "boolean", ..Column::text("Suspend") },
        Column::integer("Active"),
        Column::text("Last Schedule"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: Some(row),
    default: Some(default),
    validate: Some(validate),
    warnings: Some(warnings),
    ..Definition::namespaced("io.k8s.api.batch.v1.CronJob", "batch/cronjobs", "cronjob").short(&["cj"]).in_all()
};

fn default(job: &mut CronJob) {
    let spec = &mut job.spec;
    text(&mut spec.concurrency_policy, "Allow");
    value(&mut spec.suspend, false);
    value(&mut spec.successful_jobs_history_limit, 3);
    value(&mut spec.failed_jobs_history_limit, 1);
    spec.job_template.metadata.get_or_insert_default();
    let template = spec.job_template.spec.get_or_insert_default();
    job::default_patterns(template);
    defaults::template(&mut template.template);
    job.status.get_or_insert_default();
}

fn validate(job: &CronJob) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = job.metadata.name.as_deref().unwrap_or("");
    if name.len() > NAME_MAX {
        let why = "must be no more than 52 characters";
        errors.push(FieldError::invalid(Path::new("metadata").child("name"), name, why));
    }
    let path = Path::new("spec");
    let spec = job.spec.clone();
    let at = path.child("schedule");
    if required(&mut errors, &at, &spec.schedule) {
        if let Err(why) = Schedule::parse(&spec.schedule) {
            errors.push(FieldError::invalid(at.clone(), spec.schedule.as_str(), why));
        }
        if spec.schedule.contains("TZ") {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(FieldError::invalid(at, spec.schedule.as_str(), why));
        }
    }
    if let Some(zone) = &spec.time_zone {
        let at = path.child("timeZone");
        if zone.is_empty() {
            errors.push(FieldError::invalid(at, "", "timeZone must be nil or non-empty string"));
        } else if zone.eq_ignore_ascii_case("local") {
            errors.push(FieldError::invalid(
                at,
                zone.as_str(),
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            ));
        } else if schedule::zone(zone).is_none() {
            errors.push(FieldError::invalid(at, zone.as_str(), format!("unknown time zone {zone}")));
        }
    }
    maybe_not_negative(&mut errors, &path.child("startingDeadlineSeconds"), spec.starting_deadline_seconds);
    one_of(&mut errors, &path.child("concurrencyPolicy"), str_of(&spec.concurrency_policy), &["Allow", "Forbid", "Replace"]);
    maybe_not_negative(&mut errors, &path.child("successfulJobsHistoryLimit"), spec.successful_jobs_history_limit);
    maybe_not_negative(&mut errors, &path.child("failedJobsHistoryLimit"), spec.failed_jobs_history_limit);
    let template = spec.job_template.spec.unwrap_or_default();
    let at = path.child("jobTemplate").child("spec");
    if template.selector.is_some() {
        let why = "`selector` will be auto-generated";
        let value = serde_json::to_value(&template.selector).unwrap_or_default();
        errors.push(FieldError::invalid(at.child("selector"), value, why));
    }
    if template.manual_selector == Some(true) {
        errors.push(FieldError::not_supported(at.child("manualSelector"), true, &["nil", "false"]));
    }
    job::spec(&mut errors, &at, &template);
    errors
}

fn warnings(job: &CronJob) -> Vec<String> {
    let mut texts = Vec::new();
    let spec = job.spec.job_template.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    if let Some(spec) = spec {
        let path = Path::from("spec.jobTemplate.spec.template.spec");
        template_warnings(&mut texts, &path, spec);
    }
    texts
}

fn row(job: &CronJob, now: Timestamp) -> Vec<Value> {
    let spec = job.spec.clone();
    let status = job.status.clone().unwrap_or_default();
    let last = status.last_schedule_time.as_ref().map_or_else(|| NONE.to_owned(), |time| since(Some(time), now));
    let template = spec.job_template.spec.unwrap_or_default();
    let [names, images] = containers(Some(&template.template));
    vec![
        name(&job.metadata),
        spec.schedule.into(),
        or_none(spec.time_zone.as_deref()).into(),
        boolean(spec.suspend).into(),
        status.active.map_or(0, |active| active.len()).into(),
        last.into(),
        age(&job.metadata, now),
        names,
        images,
        selector(template.selector.as_ref()).into(),
    ]
}
