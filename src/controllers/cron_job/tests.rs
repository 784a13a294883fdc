//! What a CronJob does at a time, as tables: upstream's `TestControllerV2SyncCronJob` and its kin.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use serde_json::{Value, json};

use super::plan::{self, Plan, View};

fn cron_job(schedule: &str, spec: Value, status: Value) -> CronJob {
    let mut all = json!({"schedule": schedule, "jobTemplate": {
        "metadata": {"labels": {"app": "x"}, "annotations": {"a": "b"}},
        "spec": {"template": {"spec": {"containers": []}}}}});
    json_patch::merge(&mut all, &spec);
    let metadata = json!({"name": "tick", "namespace": "a", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:10Z"});
    serde_json::from_value(json!({"metadata": metadata, "spec": all, "status": status})).unwrap()
}

/// A job: name and uid, the condition with which it ended or "", and the time of start and end.
fn job(name: &str, end: &str, time: &str) -> Arc<Job> {
    let conditions = if end.is_empty() { json!([]) } else { json!([{"type": end, "status": "True"}]) };
    let mut status = json!({"conditions": conditions, "startTime": time});
    if end == "Complete" {
        status["completionTime"] = json!(time);
    }
    serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "namespace": "a"}, "status": status})).unwrap()
}

fn at(cron_job: &CronJob, jobs: &[Arc<Job>], gone: &[&str], now: &str) -> Plan {
    let gone: HashSet<String> = gone.iter().map(|uid| (*uid).to_owned()).collect();
    plan::plan(&View { cron_job, jobs, gone: &gone, zone: &TimeZone::UTC, now: now.parse().unwrap() })
}

/// The name of the job that is started, the reasons that are reported, and the seconds until the next look.
fn told(plan: &Plan) -> (String, Vec<&'static str>, Option<u64>) {
    let started = plan.start.as_ref().and_then(|start| start.job.metadata.name.clone()).unwrap_or_default();
    let reasons = plan.reports.iter().map(|(_, reason, _)| *reason).collect();
    (started, reasons, plan.again.map(|wait| wait.as_secs()))
}

fn minutes(time: &str) -> String {
    format!("tick-{}", time.parse::<Timestamp>().unwrap().as_second() / 60)
}

#[test]
fn starts_on_time() {
    let (none, hourly) = (json!({}), "0 * * * *");
    let last = json!({"lastScheduleTime": "2026-01-01T03:00:00Z"});
    let active = json!({"active": [{"name": "old", "uid": "old"}]});
    for (schedule, spec, status, now, started, reasons, again) in [
        (hourly, json!({}), &none, "2026-01-01T00:59:59Z", "", vec![], Some(1)),
        (hourly, json!({}), &none, "2026-01-01T01:00:00Z", "2026-01-01T01:00:00Z", vec![], Some(3600)),
        (hourly, json!({}), &none, "2026-01-01T01:30:00Z", "2026-01-01T01:00:00Z", vec![], Some(1800)),
        // Of several that were missed the last one is started, once.
        (hourly, json!({}), &none, "2026-01-01T05:10:00Z", "2026-01-01T05:00:00Z", vec![], Some(3000)),
        (hourly, json!({}), &last, "2026-01-01T03:10:00Z", "", vec![], Some(3000)),
        (hourly, json!({}), &last, "2026-01-01T04:00:00Z", "2026-01-01T04:00:00Z", vec![], Some(3600)),
        (hourly, json!({"suspend": true}), &none, "2026-01-01T05:10:00Z", "", vec![], None),
        (
            hourly,
            json!({"startingDeadlineSeconds": 900}),
            &none,
            "2026-01-01T05:10:00Z",
            "2026-01-01T05:00:00Z",
            vec![],
            Some(3000),
        ),
        // Beyond the deadline it is not even a time that counts.
        (hourly, json!({"startingDeadlineSeconds": 60}), &none, "2026-01-01T05:10:00Z", "", vec![], Some(3000)),
        (hourly, json!({}), &none, "2026-02-01T05:10:00Z", "2026-02-01T05:00:00Z", vec!["TooManyMissedTimes"], Some(3000)),
        ("@every 7m", json!({}), &last, "2026-01-01T03:20:00Z", "2026-01-01T03:14:00Z", vec![], Some(60)),
        ("30 6-16/4 * * 1-5", json!({}), &last, "2026-01-05T09:00:00Z", "2026-01-05T06:30:00Z", vec![], Some(5400)),
        ("0 0 31 2 *", json!({}), &none, "2026-02-01T05:10:00Z", "", vec!["InvalidSchedule"], None),
        (
            "0 6 * * *",
            json!({"timeZone": "Asia/Tokyo"}),
            &none,
            "2026-01-01T21:00:00Z",
            "2026-01-01T21:00:00Z",
            vec![],
            Some(86400),
        ),
        (hourly, json!({"timeZone": "Mars/Base"}), &none, "2026-01-01T05:10:00Z", "", vec!["UnknownTimeZone"], None),
        ("TZ=UTC 0 * * * *", json!({}), &last, "2026-01-01T03:10:00Z", "", vec!["UnsupportedSchedule"], Some(3000)),
        ("x * * * *", json!({}), &last, "2026-01-01T03:10:00Z", "", vec!["UnparseableSchedule"], None),
        (
            hourly,
            json!({"concurrencyPolicy": "Forbid"}),
            &active,
            "2026-01-01T01:00:00Z",
            "",
            vec!["UnexpectedJob", "JobAlreadyActive"],
            Some(3600),
        ),
    ] {
        let jobs: &[Arc<Job>] = if status == &active { &[job("old", "", now), job("new", "", now)] } else { &[] };
        let cron_job = cron_job(schedule, spec.clone(), status.clone());
        let plan = at(&cron_job, jobs, &[], now);
        let expected = if started.is_empty() { String::new() } else { minutes(started) };
        assert_eq!(told(&plan), (expected, reasons, again), "{schedule} {spec} at {now}");
    }
}

#[test]
fn the_job_that_is_started() {
    let due = "2026-01-01T21:00:00Z";
    for (spec, time) in [(json!({}), due), (json!({"timeZone": "Asia/Tokyo"}), "2026-01-02T06:00:00+09:00")] {
        let cron_job = cron_job("0 * * * *", spec, json!({"lastScheduleTime": "2026-01-01T20:00:00Z"}));
        let mut plan = at(&cron_job, &[], &[], due);
        let start = plan.start.take().unwrap();
        let meta = serde_json::to_value(&start.job.metadata).unwrap();
        let annotations = json!({"a": "b", "batch.kubernetes.io/cronjob-scheduled-timestamp": time});
        assert_eq!((&meta["annotations"], &meta["labels"]), (&annotations, &json!({"app": "x"})));
        assert_eq!(meta["ownerReferences"][0]["uid"], "cron");
        plan::started(&mut plan.status, &start.job, start.scheduled);
        let status = serde_json::to_value(&plan.status).unwrap();
        assert_eq!((&status["lastScheduleTime"], &status["active"][0]["kind"]), (&json!(due), &json!("Job")));
        // It is not started once more, though the note of the time be lost.
        let mut again = cron_job.clone();
        again.status = Some(plan.status);
        again.status.as_mut().unwrap().last_schedule_time = None;
        assert!(at(&again, &[], &[], due).start.is_none());
    }
}

#[test]
fn replaces_what_runs() {
    let active = json!({"active": [{"name": "old", "uid": "old"}]});
    let cron_job = cron_job("0 * * * *", json!({"concurrencyPolicy": "Replace"}), active);
    let now = "2026-01-01T01:00:00Z";
    let start = at(&cron_job, &[job("old", "", now)], &[], now).start.unwrap();
    assert_eq!(start.replaced.iter().map(|job| job.name.as_deref()).collect::<Vec<_>>(), [Some("old")]);
}

#[test]
fn takes_in_its_jobs() {
    let now = "2026-01-01T00:30:00Z";
    let active = json!({"active": [{"name": "a", "uid": "a"}, {"name": "b", "uid": "b"}, {"name": "c", "uid": "c"}]});
    let cron_job = cron_job("0 * * * *", json!({}), active);
    let jobs = [job("a", "Complete", "2026-01-01T00:20:00Z"), job("b", "", now), job("x", "Failed", now)];
    assert_eq!(plan::missing(&cron_job, &jobs).len(), 1);
    assert!(!plan::has_unexpected(&cron_job, &jobs));
    let plan = at(&cron_job, &jobs, &["c"], now);
    assert_eq!(told(&plan).1, ["SawCompletedJob", "MissingJob"]);
    assert_eq!(plan.reports[0].2, "Saw completed job: a, status: Complete");
    let status = serde_json::to_value(&plan.status).unwrap();
    assert_eq!(status, json!({"active": [{"name": "b", "uid": "b"}], "lastSuccessfulTime": "2026-01-01T00:20:00Z"}));
    // The API has it still: the cache is only slow.
    assert!(told(&at(&cron_job, &jobs, &[], now)).1.iter().all(|reason| *reason != "MissingJob"));
}

#[test]
fn history() {
    let limits = json!({"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 0});
    let cron_job = cron_job("0 * * * *", limits, json!({}));
    let jobs = [
        job("c", "Complete", "2026-01-01T03:00:00Z"),
        job("a", "Complete", "2026-01-01T01:00:00Z"),
        job("b", "Complete", "2026-01-01T02:00:00Z"),
        job("f", "Failed", "2026-01-01T02:00:00Z"),
        job("r", "", "2026-01-01T02:00:00Z"),
    ];
    let names: Vec<String> = plan::surplus(&cron_job, &jobs).iter().filter_map(|job| job.metadata.name.clone()).collect();
    assert_eq!(names, ["a", "b", "f"]);
}
