//! Job: pods that run to completion.

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{job_policy, job_status};
use crate::api::field::{FieldError, Path};
use crate::api::kind::{Column, Subresource};
use crate::api::names;
use crate::api::table::human_duration;
use crate::kinds::check::{Errors, immutable, label_selector, maybe_not_negative, one_of, rule, selects, str_of};
use crate::kinds::core::pod::template_warnings;
use crate::kinds::core::pod_spec::defaults::{self, text, value};
use crate::kinds::core::pod_spec::template;
use crate::kinds::print::{age, containers, name, selector};
use crate::kinds::typed::{Definition, Selectable, names_of};

const CONTROLLER_UID: &str = "batch.kubernetes.io/controller-uid";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
const OLD_CONTROLLER_UID: &str = "controller-uid";
const OLD_JOB_NAME: &str = "job-name";
const MANAGED_BY_BYTES: usize = 63;
/// Most pods at a time and most failed indexes of an Indexed job; more completions are many.
const INDEXED_LIMIT: i32 = 100_000;
/// The same for a job of many completions whose failures are counted by index.
const HIGH_LIMIT: i32 = 10_000;

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
    default_patterns(spec);
    defaults::template(&mut spec.template);
    if job.metadata.labels.as_ref().is_none_or(|labels| labels.is_empty()) {
        job.metadata.labels = Some(template::labels_of(&spec.template)).filter(|labels| !labels.is_empty());
    }
    job.status.get_or_insert_default();
}

/// A condition that a failure policy names is meant to be True.
pub(super) fn default_patterns(spec: &mut JobSpec) {
    for rule in spec.pod_failure_policy.iter_mut().flat_map(|policy| &mut policy.rules) {
        for pattern in rule.on_pod_conditions.iter_mut().flatten() {
            text(&mut pattern.status, "True");
        }
    }
}

/// Gives the job a selector of its own, unless the client manages it. Labels that the client set stay: they are refused then.
fn prepare_create(job: &mut Job) {
    let spec = job.spec.get_or_insert_default();
    if spec.manual_selector == Some(true) {
        return;
    }
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let name = job.metadata.name.clone().unwrap_or_default();
    let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
    for key in [OLD_JOB_NAME, JOB_NAME] {
        labels.entry(key.to_owned()).or_insert_with(|| name.clone());
    }
    for key in [OLD_CONTROLLER_UID, CONTROLLER_UID] {
        labels.entry(key.to_owned()).or_insert_with(|| uid.clone());
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
            generated(&mut errors, job, &job_spec, selector);
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

/// The labels and the selector that the server makes must be what it would have made.
fn generated(errors: &mut Errors, job: &Job, spec: &JobSpec, selector: &LabelSelector) {
    if spec.manual_selector == Some(true) {
        return;
    }
    let (name, uid) = (str_of(&job.metadata.name), str_of(&job.metadata.uid));
    let labels = template::labels_of(&spec.template);
    let at = Path::from("spec.template.metadata.labels");
    let wanted = [(OLD_CONTROLLER_UID, uid), (OLD_JOB_NAME, name), (CONTROLLER_UID, uid), (JOB_NAME, name)];
    for (key, value) in wanted {
        let why = format!("must be '{value}'");
        match labels.get(key) {
            None => errors.push(FieldError::required(at.key(key), why)),
            Some(found) if found != value => {
                let value = serde_json::to_value(&labels).unwrap_or_default();
                errors.push(FieldError::invalid(at.key(key), value, why));
            }
            Some(_) => {}
        }
    }
    let made = wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    if !selects(selector, &made) {
        let value = serde_json::to_value(selector).unwrap_or_default();
        errors.push(FieldError::invalid(Path::from("spec.selector"), value, "`selector` not auto-generated"));
    }
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
    if spec.max_failed_indexes.is_some() && spec.backoff_limit_per_index.is_none() {
        errors.push(FieldError::required(path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    if let Some(manager) = &spec.managed_by {
        let at = path.child("managedBy");
        domain_prefixed(errors, &at, manager);
        if manager.len() > MANAGED_BY_BYTES {
            errors.push(FieldError::too_long(at, MANAGED_BY_BYTES));
        }
    }
    mode(errors, path, spec);
    job_policy::failure(errors, &path.child("podFailurePolicy"), spec);
    if let Some(policy) = &spec.pod_replacement_policy {
        let supported: &[&str] = if spec.pod_failure_policy.is_some() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        one_of(errors, &path.child("podReplacementPolicy"), policy, supported);
    }
    let at = path.child("template");
    template::template(errors, &at, &spec.template, &[]);
    let policy = spec.template.spec.as_ref().map_or("", |spec| str_of(&spec.restart_policy));
    let restart = at.child("spec").child("restartPolicy");
    if policy.is_empty() || policy == "Always" {
        errors.push(FieldError::required(restart, "valid values: \"OnFailure\", \"Never\""));
    } else if policy != "Never" && spec.pod_failure_policy.is_some() {
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(FieldError::invalid(restart, policy, why));
    }
}

/// A name behind a domain: `example.com/controller`.
fn domain_prefixed(errors: &mut Errors, path: &Path, text: &str) {
    let Some((domain, name)) = text.split_once('/').filter(|(domain, name)| !domain.is_empty() && !name.is_empty()) else {
        let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.push(FieldError::invalid(path.clone(), text, why));
    };
    rule(errors, path, domain, names::dns1123_subdomain);
    if !name.chars().all(|letter| letter.is_ascii_alphanumeric() || "/-._~%!$&'()*+,;=:".contains(letter)) {
        errors.push(FieldError::invalid(path.clone(), name, "Invalid path"));
    }
}

/// What a job with indexes needs, and one without may not have.
fn mode(errors: &mut Errors, path: &Path, spec: &JobSpec) {
    let mode = spec.completion_mode.as_deref().unwrap_or("NonIndexed");
    one_of(errors, &path.child("completionMode"), mode, &["Indexed", "NonIndexed"]);
    if mode == "NonIndexed" {
        let why = "requires indexed completion mode";
        for (name, count) in
            [("backoffLimitPerIndex", spec.backoff_limit_per_index), ("maxFailedIndexes", spec.max_failed_indexes)]
        {
            errors.extend(count.map(|count| FieldError::invalid(path.child(name), count, why)));
        }
        if let Some(policy) = &spec.success_policy {
            let value = serde_json::to_value(policy).unwrap_or_default();
            errors.push(FieldError::invalid(path.child("successPolicy"), value, why));
        }
    } else if mode == "Indexed" {
        indexed(errors, path, spec);
        job_policy::success(errors, &path.child("successPolicy"), spec);
    }
}

fn indexed(errors: &mut Errors, path: &Path, spec: &JobSpec) {
    let mut at_most = |name: &str, count: Option<i32>, limit: i32, more: &str| {
        if let Some(count) = count.filter(|count| *count > limit) {
            let why = format!("must be less than or equal to {limit}{more}");
            errors.push(FieldError::invalid(path.child(name), count, why));
        }
    };
    at_most("parallelism", spec.parallelism, INDEXED_LIMIT, " when completion mode is Indexed");
    at_most("maxFailedIndexes", spec.max_failed_indexes, INDEXED_LIMIT, "");
    let is_high =
        spec.completions.is_some_and(|completions| completions > INDEXED_LIMIT) && spec.backoff_limit_per_index.is_some();
    if is_high {
        let more = format!(" when completions are above {INDEXED_LIMIT} and used with backoff limit per index");
        at_most("parallelism", spec.parallelism, HIGH_LIMIT, &more);
        at_most("maxFailedIndexes", spec.max_failed_indexes, HIGH_LIMIT, &more);
        if spec.max_failed_indexes.is_none() {
            let why = format!("must be specified when completions is above {INDEXED_LIMIT}");
            errors.push(FieldError::required(path.child("maxFailedIndexes"), why));
        }
    }
    match (spec.completions, spec.max_failed_indexes) {
        (None, _) => errors.push(FieldError::required(path.child("completions"), "when completion mode is Indexed")),
        (Some(completions), Some(most)) if most > completions => {
            errors.push(FieldError::invalid(path.child("maxFailedIndexes"), most, "must be less than or equal to completions"));
        }
        _ => {}
    }
}

fn validate_update(new: &Job, old: &Job, subresource: Option<Subresource>) -> Vec<FieldError> {
    if subresource == Some(Subresource::Status) {
        return job_status::check(new, old);
    }
    let mut errors = validate(new);
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return errors };
    let path = Path::new("spec");
    let at = path.child("completions");
    if spec.completion_mode.as_deref() != Some("Indexed") {
        immutable(&mut errors, &at, &spec.completions, &before.completions);
    } else if spec.completions.is_some() && spec.completions != before.completions && spec.completions != spec.parallelism {
        errors.push(FieldError::invalid(at, spec.completions, "can only be modified in tandem with spec.parallelism"));
    }
    immutable(&mut errors, &path.child("selector"), &spec.selector, &before.selector);
    let never_started = old.status.as_ref().is_none_or(|status| status.start_time.is_none());
    let mut allowed = before.template.clone();
    if before.suspend == Some(true) && never_started {
        take_scheduling(&mut allowed, &spec.template);
    }
    immutable(&mut errors, &path.child("template"), &spec.template, &allowed);
    immutable(&mut errors, &path.child("completionMode"), &spec.completion_mode, &before.completion_mode);
    immutable(&mut errors, &path.child("podFailurePolicy"), &spec.pod_failure_policy, &before.pod_failure_policy);
    immutable(&mut errors, &path.child("backoffLimitPerIndex"), &spec.backoff_limit_per_index, &before.backoff_limit_per_index);
    immutable(&mut errors, &path.child("managedBy"), &spec.managed_by, &before.managed_by);
    immutable(&mut errors, &path.child("successPolicy"), &spec.success_policy, &before.success_policy);
    errors
}

/// Takes over what may be changed before a job begins: where its pods may run, and their labels and annotations.
fn take_scheduling(old: &mut PodTemplateSpec, new: &PodTemplateSpec) {
    let meta = old.metadata.get_or_insert_default();
    let (labels, annotations) =
        new.metadata.as_ref().map(|meta| (meta.labels.clone(), meta.annotations.clone())).unwrap_or_default();
    (meta.labels, meta.annotations) = (labels, annotations);
    let (Some(old), Some(new)) = (&mut old.spec, &new.spec) else { return };
    let affinity = new.affinity.as_ref().and_then(|affinity| affinity.node_affinity.clone());
    if affinity.is_some() || old.affinity.is_some() {
        old.affinity.get_or_insert_default().node_affinity = affinity;
    }
    old.node_selector.clone_from(&new.node_selector);
    old.tolerations.clone_from(&new.tolerations);
    old.scheduling_gates.clone_from(&new.scheduling_gates);
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
