//! Job: pods that run to completion.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec, PodFailurePolicy};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::table::human_duration;
use crate::kinds::check::{Errors, immutable, label_selector, maybe_not_negative, not_negative, one_of, required_one_of, str_of};
use crate::kinds::core::pod::template_warnings;
use crate::kinds::core::pod_spec::defaults::{self, text, value};
use crate::kinds::core::pod_spec::template;
use crate::kinds::print::{age, containers, name, selector};
use crate::kinds::typed::{Definition, Selectable, names_of};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const OLD_CONTROLLER_UID: &str = "controller-uid";
const OLD_JOB_NAME: &str = "job-name";

const FIELDS: [Selectable; 1] = [Selectable { name: "status.successful", paths: &[&["status", "succeeded"]], absent: "0" }];

/// The kind.
pub static JOB: Definition<Job> = Definition {
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Completions"),
        Column::text("Duration"),
        Column::AGE,
        Column::wide("Containers"),
        Column::wide("Images"),
        Column::wide("Selector"),
    ],
    row: Some(row),
    selectable: &FIELDS,
    selectable_names: &names_of(&FIELDS),
    default: Some(default),
    defaults_metadata: true,
    prepare_create: Some(prepare_create),
    validate: Some(validate),
    validate_update: Some(validate_update),
    warnings: Some(warnings),
    orphans_by_default: true,
    ..Definition::namespaced("io.k8s.api.batch.v1.Job", "batch/jobs", "job").in_all()
};

fn default(job: &mut Job) {
    let spec = job.spec.get_or_insert_default();
    if spec.completions.is_none() && spec.parallelism.is_none() {
        spec.completions = Some(1);
    }
    value(&mut spec.parallelism, 1);
    value(&mut spec.backoff_limit, if spec.backoff_limit_per_index.is_some() { i32::MAX } else { 6 });
    text(&mut spec.completion_mode, "NonIndexed");
    value(&mut spec.suspend, false);
    value(&mut spec.manual_selector, false);
    let replacement = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
    text(&mut spec.pod_replacement_policy, replacement);
    for rule in spec.pod_failure_policy.iter_mut().flat_map(|policy| &mut policy.rules) {
        for pattern in rule.on_pod_conditions.iter_mut().flatten() {
            text(&mut pattern.status, "True");
        }
    }
    defaults::template(&mut spec.template);
    if job.metadata.labels.as_ref().is_none_or(|labels| labels.is_empty()) {
        job.metadata.labels = Some(template::labels_of(&spec.template)).filter(|labels| !labels.is_empty());
    }
    job.status.get_or_insert_default();
}

/// Gives the job a selector of its own, unless the client manages it.
fn prepare_create(job: &mut Job) {
    let spec = job.spec.get_or_insert_default();
    if spec.manual_selector == Some(true) {
        return;
    }
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let name = job.metadata.name.clone().unwrap_or_default();
    let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
    for key in [OLD_JOB_NAME, JOB_NAME] {
        labels.insert(key.to_owned(), name.clone());
    }
    for key in [OLD_CONTROLLER_UID, CONTROLLER_UID] {
        labels.insert(key.to_owned(), uid.clone());
    }
    let selector = spec.selector.get_or_insert_with(LabelSelector::default);
    selector.match_labels.get_or_insert_default().entry(CONTROLLER_UID.to_owned()).or_insert(uid);
}

fn validate(job: &Job) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let job_spec = job.spec.clone().unwrap_or_default();
    match &job_spec.selector {
        None => errors.push(FieldError::required(path.child("selector"), "")),
        Some(selector) => {
            label_selector(&mut errors, &path.child("selector"), selector);
            template::selected(&mut errors, &path.child("template"), &job_spec.template, selector);
        }
    }
    spec(&mut errors, &path, &job_spec);
    let is_indexed = job_spec.completion_mode.as_deref() == Some("Indexed");
    if let (true, Some(completions)) = (is_indexed, job_spec.completions.filter(|completions| *completions > 0)) {
        let last = format!("{}-{}", job.metadata.name.as_deref().unwrap_or(""), completions - 1);
        if last.len() > 63 {
            let why = format!("will not able to create pod with invalid DNS label: {last}");
            errors.push(FieldError::invalid(
                Path::new("metadata").child("name"),
                job.metadata.name.as_deref().unwrap_or(""),
                why,
            ));
        }
    }
    errors
}

/// Checks the specification of a job, in a Job or in the template of a CronJob.
pub fn spec(errors: &mut Errors, path: &Path, spec: &JobSpec) {
    let counts = [
        ("parallelism", spec.parallelism.map(i64::from)),
        ("completions", spec.completions.map(i64::from)),
        ("activeDeadlineSeconds", spec.active_deadline_seconds),
        ("backoffLimit", spec.backoff_limit.map(i64::from)),
        ("ttlSecondsAfterFinished", spec.ttl_seconds_after_finished.map(i64::from)),
        ("backoffLimitPerIndex", spec.backoff_limit_per_index.map(i64::from)),
        ("maxFailedIndexes", spec.max_failed_indexes.map(i64::from)),
    ];
    for (name, count) in counts {
        maybe_not_negative(errors, &path.child(name), count);
    }
    if let Some(mode) = &spec.completion_mode {
        let at = path.child("completionMode");
        one_of(errors, &at, mode, &["Indexed", "NonIndexed"]);
        if mode == "Indexed" && spec.completions.is_none() {
            let why = "when completion mode is Indexed";
            errors.push(FieldError::required(path.child("completions"), why));
        }
        if mode == "NonIndexed" && spec.backoff_limit_per_index.is_some() {
            errors.push(FieldError::invalid(
                path.child("backoffLimitPerIndex"),
                spec.backoff_limit_per_index,
                "requires indexed completion mode",
            ));
        }
        if mode == "NonIndexed" && spec.max_failed_indexes.is_some() {
            errors.push(FieldError::invalid(
                path.child("maxFailedIndexes"),
                spec.max_failed_indexes,
                "requires indexed completion mode",
            ));
        }
    }
    if let Some(policy) = &spec.pod_replacement_policy {
        let supported: &[&str] = if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        one_of(errors, &path.child("podReplacementPolicy"), policy, supported);
    }
    let at = path.child("template");
    template::template(errors, &at, &spec.template, &[]);
    let policy = spec.template.spec.as_ref().map_or("", |spec| str_of(&spec.restart_policy));
    let restart = at.child("spec").child("restartPolicy");
    if policy.is_empty() || policy == "Always" {
        errors.push(FieldError::required(restart.clone(), "valid values: \"OnFailure\", \"Never\""));
    }
    if let Some(failure) = &spec.pod_failure_policy {
        failure_policy(errors, &path.child("podFailurePolicy"), failure);
        if policy != "Never" {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(restart, policy, why));
        }
    }
}

fn failure_policy(errors: &mut Errors, path: &Path, policy: &PodFailurePolicy) {
    for (index, rule) in policy.rules.iter().enumerate() {
        let path = path.child("rules").index(index);
        required_one_of(errors, &path.child("action"), &rule.action, &["Count", "FailIndex", "FailJob", "Ignore"]);
        match (&rule.on_exit_codes, &rule.on_pod_conditions) {
            (None, None) => {
                let value = serde_json::to_value(rule).unwrap_or_default();
                errors.push(FieldError::invalid(path, value, "specifying one of OnExitCodes and OnPodConditions is required"));
            }
            (Some(_), Some(conditions)) if !conditions.is_empty() => {
                let value = serde_json::to_value(rule).unwrap_or_default();
                errors.push(FieldError::invalid(path, value, "specifying both OnExitCodes and OnPodConditions is not supported"));
            }
            (Some(codes), _) => {
                let path = path.child("onExitCodes");
                required_one_of(errors, &path.child("operator"), &codes.operator, &["In", "NotIn"]);
                if codes.values.is_empty() {
                    errors.push(FieldError::invalid(path.child("values"), Vec::<i32>::new(), "at least one value is required"));
                }
                for (index, _) in codes.values.iter().enumerate().filter(|(_, code)| codes.operator == "In" && **code == 0) {
                    errors.push(FieldError::invalid(path.child("values").index(index), 0, "must not be 0 for the In operator"));
                }
            }
            _ => {}
        }
    }
}

fn validate_update(new: &Job, old: &Job, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return status(new);
    }
    let mut errors = validate(new);
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return errors };
    let path = Path::new("spec");
    let is_elastic = spec.completion_mode.as_deref() == Some("Indexed")
        && spec.completions == spec.parallelism
        && before.completions == before.parallelism;
    if !is_elastic {
        immutable(&mut errors, &path.child("completions"), &spec.completions, &before.completions);
    }
    immutable(&mut errors, &path.child("selector"), &spec.selector, &before.selector);
    let never_started = old.status.as_ref().is_none_or(|status| status.start_time.is_none());
    if !(before.suspend == Some(true) && never_started) {
        immutable(&mut errors, &path.child("template"), &spec.template, &before.template);
    }
    immutable(&mut errors, &path.child("completionMode"), &spec.completion_mode, &before.completion_mode);
    immutable(&mut errors, &path.child("podFailurePolicy"), &spec.pod_failure_policy, &before.pod_failure_policy);
    immutable(&mut errors, &path.child("backoffLimitPerIndex"), &spec.backoff_limit_per_index, &before.backoff_limit_per_index);
    immutable(&mut errors, &path.child("managedBy"), &spec.managed_by, &before.managed_by);
    immutable(&mut errors, &path.child("successPolicy"), &spec.success_policy, &before.success_policy);
    errors
}

fn status(job: &Job) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let status = job.status.clone().unwrap_or_default();
    for (name, count) in [("active", status.active), ("succeeded", status.succeeded), ("failed", status.failed)] {
        not_negative(&mut errors, &Path::new("status").child(name), i64::from(count.unwrap_or(0)));
    }
    errors
}

fn warnings(job: &Job) -> Vec<String> {
    let mut texts = Vec::new();
    if let Some(spec) = job.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) {
        template_warnings(&mut texts, &Path::new("spec").child("template").child("spec"), spec);
    }
    texts
}

/// The word for how a job stands.
fn state(job: &Job) -> &'static str {
    let is = |kind: &str| {
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.filter(|condition| condition.type_ == kind).any(|condition| condition.status == "True")
    };
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if job.metadata.deletion_timestamp.is_some() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else if is("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn row(job: &Job, now: Timestamp) -> Vec<Value> {
    let spec = job.spec.clone().unwrap_or_default();
    let status = job.status.clone().unwrap_or_default();
    let succeeded = status.succeeded.unwrap_or(0);
    let completions = match (spec.completions, spec.parallelism.unwrap_or(0)) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let duration = status.start_time.as_ref().map_or_else(String::new, |start| {
        let end = status.completion_time.as_ref().map_or(now, |time| time.0);
        human_duration(end.as_second() - start.0.as_second())
    });
    let [names, images] = containers(Some(&spec.template));
    vec![
        name(&job.metadata),
        state(job).into(),
        completions.into(),
        duration.into(),
        age(&job.metadata, now),
        names,
        images,
        selector(spec.selector.as_ref()).into(),
    ]
}
