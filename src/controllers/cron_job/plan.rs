//! What a CronJob needs: pure functions of the CronJob, its jobs and the time, which follow `syncCronJob` of upstream's
//! `cronjob_controllerv2.go`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::super::job::conditions;
use super::super::owners;
use crate::client::recorder::{EventType, reference};
use crate::kinds::batch::schedule::{self, Schedule};

/// Annotation of a job: when it was due.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// A CronJob is looked at so long after its time, so that a clock that is a little behind does not miss it.
const LATE: Duration = Duration::from_millis(100);
/// So many times that were missed are too many to be told one by one.
const MANY: i64 = 100;

/// Something to report: type, reason, message.
pub(super) type Report = (EventType, &'static str, String);

/// What is known of a CronJob.
pub(super) struct View<'a> {
    pub cron_job: &'a CronJob,
    /// The jobs that it controls.
    pub jobs: &'a [Arc<Job>],
    /// Uids of jobs in `status.active` that are gone, as the API says.
    pub gone: &'a HashSet<String>,
    /// The zone of schedules that name none.
    pub zone: &'a TimeZone,
    pub now: Timestamp,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Plan {
    pub status: CronJobStatus,
    pub reports: Vec<Report>,
    pub start: Option<Start>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// A job to be started.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Start {
    pub job: Job,
    pub scheduled: Timestamp,
    /// Jobs that have to go first.
    pub replaced: Vec<ObjectReference>,
}

/// The times of a schedule that matter now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Times {
    /// From when on times count.
    earliest: Timestamp,
    /// The last one that was due.
    recent: Option<Timestamp>,
    missed: i64,
}

fn is_active(status: &CronJobStatus, uid: Option<&String>) -> bool {
    status.active.iter().flatten().any(|active| active.uid.as_ref() == uid)
}

/// The jobs that are in `status.active`, but not among `jobs`: the API has to be asked about them.
pub(super) fn missing(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Vec<ObjectReference> {
    let is_known = |active: &ObjectReference| jobs.iter().any(|job| job.metadata.uid == active.uid);
    let active = cron_job.status.iter().flat_map(|status| status.active.iter().flatten());
    active.filter(|active| !is_known(active)).cloned().collect()
}

/// Whether there is an unfinished job that is not in `status.active`: the CronJob in the cache may be old.
pub(super) fn has_unexpected(cron_job: &CronJob, jobs: &[Arc<Job>]) -> bool {
    let status = cron_job.status.clone().unwrap_or_default();
    jobs.iter().any(|job| conditions::ending(job).is_none() && !is_active(&status, job.metadata.uid.as_ref()))
}

/// Takes a job out of `status.active`.
pub(super) fn forget(status: &mut CronJobStatus, uid: Option<&String>) {
    if let Some(active) = &mut status.active {
        active.retain(|known| known.uid.as_ref() != uid);
    }
    status.active = status.active.take().filter(|active| !active.is_empty());
}

/// Looks at a CronJob.
pub(super) fn plan(view: &View<'_>) -> Plan {
    let mut plan = Plan { status: view.cron_job.status.clone().unwrap_or_default(), ..Plan::default() };
    for job in view.jobs {
        take_in(&mut plan, job);
    }
    for active in missing(view.cron_job, view.jobs) {
        if active.uid.as_ref().is_some_and(|uid| view.gone.contains(uid)) {
            let message = format!("Active job went missing: {}", active.name.as_deref().unwrap_or(""));
            plan.reports.push((EventType::Normal, "MissingJob", message));
            forget(&mut plan.status, active.uid.as_ref());
        }
    }
    if view.cron_job.metadata.deletion_timestamp.is_none() {
        time(view, &mut plan);
    }
    plan
}

/// Takes the state of a job into the status.
fn take_in(plan: &mut Plan, job: &Job) {
    let (name, uid) = (job.metadata.name.as_deref().unwrap_or(""), job.metadata.uid.as_ref());
    match (is_active(&plan.status, uid), conditions::ending(job)) {
        (false, None) => {
            let message = format!("Saw a job that the controller did not create or forgot: {name}");
            plan.reports.push((EventType::Warning, "UnexpectedJob", message));
        }
        (true, Some(end)) => {
            forget(&mut plan.status, uid);
            let message = format!("Saw completed job: {name}, status: {}", end.type_);
            plan.reports.push((EventType::Normal, "SawCompletedJob", message));
        }
        _ => {}
    }
    let end = job.status.as_ref().filter(|_| conditions::ending(job).is_some_and(|end| end.type_ == conditions::COMPLETE));
    if let Some(end) = end.and_then(|status| status.completion_time.as_ref())
        && plan.status.last_successful_time.as_ref().is_none_or(|last| end.0 > last.0)
    {
        plan.status.last_successful_time = Some(end.clone());
    }
}

/// Looks at the clock.
fn time(view: &View<'_>, plan: &mut Plan) {
    let (spec, warning) = (&view.cron_job.spec, EventType::Warning);
    let zone = match &spec.time_zone {
        None => view.zone.clone(),
        Some(name) => match schedule::zone(name) {
            Some(zone) => zone,
            None => {
                let message = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                return plan.reports.push((warning, "UnknownTimeZone", message));
            }
        },
    };
    if spec.suspend == Some(true) {
        return;
    }
    if spec.schedule.contains("TZ") {
        let why = "is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details";
        let message = format!("CRON_TZ or TZ used in schedule {:?} {why}", spec.schedule);
        plan.reports.push((warning, "UnsupportedSchedule", message));
    }
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(why) => {
            let message = format!("unparseable schedule: {:?} : {why}", spec.schedule);
            return plan.reports.push((warning, "UnparseableSchedule", message));
        }
    };
    match times(view, &schedule, &zone, spec.starting_deadline_seconds) {
        Err(why) => plan.reports.push((warning, "InvalidSchedule", format!("invalid schedule: {} : {why}", spec.schedule))),
        Ok(times) => {
            plan.again = until_next(view, &schedule, &zone);
            if let Some(due) = times.recent {
                begin(view, plan, due, times.missed > MANY);
            }
        }
    }
}

/// Starts the job that is due, unless something speaks against it.
fn begin(view: &View<'_>, plan: &mut Plan, due: Timestamp, missed_many: bool) {
    let spec = &view.cron_job.spec;
    if missed_many {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.reports.push((EventType::Warning, "TooManyMissedTimes", message.to_owned()));
    }
    let deadline = spec.starting_deadline_seconds.map(|seconds| due.saturating_add(SignedDuration::from_secs(seconds)));
    if deadline.is_some_and(|deadline| deadline.is_ok_and(|deadline| deadline < view.now)) {
        let time = due.strftime("%a, %d %b %Y %H:%M:%S UTC");
        let message = format!("Missed scheduled time to start a job: {time}");
        return plan.reports.push((EventType::Warning, "MissSchedule", message));
    }
    let name = job_name(view.cron_job, due);
    let active = plan.status.active.clone().unwrap_or_default();
    let is_started = active.iter().any(|active| active.name.as_ref() == Some(&name));
    if is_started || plan.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == due) {
        return;
    }
    let policy = spec.concurrency_policy.as_deref().unwrap_or("Allow");
    if policy == "Forbid" && !active.is_empty() {
        let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
        return plan.reports.push((EventType::Normal, "JobAlreadyActive", message.to_owned()));
    }
    let replaced = if policy == "Replace" { active } else { Vec::new() };
    plan.start = Some(Start { job: new_job(view.cron_job, name, due), scheduled: due, replaced });
}

/// Which times count now; with the deadline, if one is given.
fn times(view: &View<'_>, schedule: &Schedule, zone: &TimeZone, deadline: Option<i64>) -> Result<Times, String> {
    let (meta, now) = (&view.cron_job.metadata, view.now);
    let last = view.cron_job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut earliest = last.or(meta.creation_timestamp.as_ref()).map_or(now, |time| time.0);
    if let Some(deadline) = deadline {
        let limit = now.saturating_sub(SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MIN);
        earliest = earliest.max(limit);
    }
    let never = || "time difference between two schedules is less than 1 second".to_owned();
    let first = schedule.next(earliest, zone).ok_or_else(never)?;
    if now < first {
        return Ok(Times { earliest, recent: None, missed: 0 });
    }
    let second = schedule.next(first, zone).ok_or_else(never)?;
    if now < second {
        return Ok(Times { earliest, recent: Some(first), missed: 0 });
    }
    // Many may have been missed: most of them are jumped over.
    let between = second.as_second() - first.as_second();
    if between < 1 {
        return Err(never());
    }
    let missed = (now.as_second() - first.as_second()) / between + 1;
    let jump = SignedDuration::from_secs((missed - 2).saturating_mul(between));
    let mut at = first.saturating_add(jump).unwrap_or(now);
    let mut recent = None;
    while let Some(next) = schedule.next(at, zone).filter(|next| *next <= now) {
        (at, recent) = (next, Some(next));
    }
    Ok(Times { earliest, recent, missed })
}

/// How long it is until the time after the last one.
fn until_next(view: &View<'_>, schedule: &Schedule, zone: &TimeZone) -> Option<Duration> {
    let from = match times(view, schedule, zone, None) {
        Ok(Times { recent: Some(recent), .. }) => recent,
        Ok(Times { earliest, missed: 0, .. }) => earliest,
        _ => view.now,
    };
    let wait = schedule.next(from, zone)?.duration_since(view.now);
    Some(Duration::try_from(wait).unwrap_or(Duration::ZERO) + LATE)
}

/// The name of the job that is due at a time: it is its own lock against a second one.
fn job_name(cron_job: &CronJob, due: Timestamp) -> String {
    format!("{}-{}", cron_job.metadata.name.as_deref().unwrap_or(""), due.as_second() / 60)
}

fn new_job(cron_job: &CronJob, name: String, due: Timestamp) -> Job {
    let template = cron_job.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    let zone = cron_job.spec.time_zone.as_deref().and_then(schedule::zone).unwrap_or(TimeZone::UTC);
    let local = due.to_zoned(zone);
    let offset = if local.offset().is_zero() { "Z" } else { "%:z" };
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), local.strftime(&format!("%Y-%m-%dT%H:%M:%S{offset}")).to_string());
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: cron_job.metadata.namespace.clone(),
        labels: meta.labels,
        annotations: Some(annotations),
        creation_timestamp: Some(Time(due)),
        owner_references: Some(vec![owners::controller_reference(cron_job)]),
        ..ObjectMeta::default()
    };
    Job { metadata, spec: template.spec, status: None }
}

/// Notes in the status that a job was started.
pub(super) fn started(status: &mut CronJobStatus, job: &Job, scheduled: Timestamp) {
    status.active.get_or_insert_default().push(reference(job));
    status.last_schedule_time = Some(Time(scheduled));
}

/// The finished jobs that are beyond the limits of the history, the oldest first.
pub(super) fn surplus(cron_job: &CronJob, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let spec = &cron_job.spec;
    let limits =
        [(conditions::COMPLETE, spec.successful_jobs_history_limit), (conditions::FAILED, spec.failed_jobs_history_limit)];
    let mut surplus = Vec::new();
    for (kind, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let ended = |job: &&Arc<Job>| conditions::ending(job).is_some_and(|end| end.type_ == kind);
        let mut ended: Vec<&Arc<Job>> = jobs.iter().filter(ended).collect();
        // Jobs that never started come last.
        ended.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|status| status.start_time.as_ref());
            (start.map_or(Timestamp::MAX, |start| start.0), job.metadata.name.clone())
        });
        let open = |job: &&Arc<Job>| job.metadata.deletion_timestamp.is_none();
        surplus.extend(ended.iter().take(ended.len().saturating_sub(limit)).copied().filter(open).cloned());
    }
    surplus
}
