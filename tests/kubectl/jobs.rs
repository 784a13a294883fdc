//! Jobs and CronJobs with real pods: that they end as they should, are counted once, and leave nothing behind.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Cluster, Kubectl, wait_for};

const SOON: Duration = Duration::from_secs(45);

/// The manifest of a job whose container runs a command in a shell.
fn job(name: &str, command: &str, spec: Value) -> Value {
    let container = json!({"name": "main", "image": "busybox", "imagePullPolicy": "Never", "command": ["sh", "-c", command]});
    let pod = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]});
    let mut job =
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"template": {"spec": pod}}});
    merge(&mut job["spec"], spec);
    job
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

fn apply(kubectl: &Kubectl, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl.manifest(&["apply"], &list.to_string()).unwrap();
}

fn get(kubectl: &Kubectl, what: &[&str]) -> Value {
    serde_json::from_str(&kubectl.run(["get"].into_iter().chain(what.iter().copied()).chain(["-o", "json"]))).unwrap()
}

fn pods_of(kubectl: &Kubectl, job: &str) -> Vec<Value> {
    let list = get(kubectl, &["pods", "-l", &format!("batch.kubernetes.io/job-name={job}")]);
    list["items"].as_array().unwrap().clone()
}

/// Waits for a condition; the job as it then is.
fn ends(kubectl: &Kubectl, name: &str, condition: &str) -> Value {
    let job = format!("job/{name}");
    kubectl.run(["wait", &format!("--for=condition={condition}"), &job, "--timeout=45s"]);
    get(kubectl, &[&job])
}

/// Waits for the job to fail, for a reason.
fn fails(kubectl: &Kubectl, name: &str, reason: &str) -> Value {
    let job = ends(kubectl, name, "failed");
    let conditions: Vec<String> = job["status"]["conditions"].as_array().unwrap().iter().map(word).collect();
    assert_eq!(conditions, [format!("FailureTarget={reason}"), format!("Failed={reason}")], "{job}");
    job
}

fn word(condition: &Value) -> String {
    format!("{}={}", condition["type"].as_str().unwrap(), condition["reason"].as_str().unwrap_or(""))
}

/// Waits until no pod of the job is left.
fn is_cleared(kubectl: &Kubectl, name: &str) {
    wait_for(&format!("the pods of {name} to go"), SOON, || {
        let left = pods_of(kubectl, name);
        if left.is_empty() { Ok(()) } else { Err(left[0]["metadata"].to_string()) }
    });
}

#[test]
fn jobs_run_to_their_end() {
    let cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let indexed = |completions: u32| json!({"completionMode": "Indexed", "completions": completions, "parallelism": 2});
    let mut by_index = indexed(3);
    merge(&mut by_index, json!({"backoffLimitPerIndex": 0}));
    let mut satisfied = indexed(2);
    merge(&mut satisfied, json!({"successPolicy": {"rules": [{"succeededIndexes": "1"}]}}));
    let restarted = json!({"backoffLimit": 1, "template": {"spec": {"restartPolicy": "OnFailure"}}});
    apply(
        &kubectl,
        &[
            job("one", "echo hello", json!({})),
            job("late", "exit 1", json!({"backoffLimit": 1})),
            job("numbered", "echo $JOB_COMPLETION_INDEX on $(hostname)", indexed(4)),
            job("limited", "exit 3", json!({"backoffLimit": 0})),
            job("policy", "exit 42", json!({"podFailurePolicy": policy})),
            job("brief", "true", json!({"ttlSecondsAfterFinished": 1})),
            job("deadline", "sleep 300", json!({"activeDeadlineSeconds": 2})),
            job("by-index", "exit $((JOB_COMPLETION_INDEX % 2))", by_index),
            job("satisfied", "[ $JOB_COMPLETION_INDEX = 1 ] || sleep 300", satisfied),
            job("restarted", "exit 1", restarted),
        ],
    );
    completes(&kubectl, &cluster.kubectl("1.20"));
    numbers(&kubectl);
    fails_for_a_reason(&kubectl);
    suspends(&kubectl);
    deletes(&kubectl);
    backs_off(&kubectl);
}

fn completes(kubectl: &Kubectl, oldest: &Kubectl) {
    oldest.run(["wait", "--for=condition=complete", "job/one", "--timeout=45s"]);
    let job = ends(kubectl, "one", "complete");
    let status = &job["status"];
    assert_eq!((&status["succeeded"], &status["uncountedTerminatedPods"]), (&json!(1), &json!({})), "{job}");
    assert!(status["startTime"].is_string() && status["completionTime"].is_string() && status["active"].is_null(), "{job}");
    let conditions: Vec<String> = status["conditions"].as_array().unwrap().iter().map(word).collect();
    assert_eq!(conditions, ["SuccessCriteriaMet=CompletionsReached", "Complete=CompletionsReached"]);
    for kubectl in [kubectl, oldest] {
        assert_eq!(kubectl.run(["logs", "job/one"]), "hello\n");
        let row = kubectl.run(["get", "job", "one", "--no-headers"]);
        assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), ["one", "Complete", "1/1"], "{row}");
        wait_for("the events of the job", SOON, || {
            let described = kubectl.run(["describe", "job", "one"]);
            let has = |part: &&str| described.contains(*part);
            let parts = ["Pods Statuses:", "SuccessfulCreate", "job-controller", "Created pod: one-", "Job completed"];
            if parts.iter().all(has) { Ok(()) } else { Err(described) }
        });
    }
    let pod = &pods_of(kubectl, "one")[0];
    assert!(pod["metadata"]["finalizers"].is_null(), "{pod}");
    wait_for("the job and its pods to go after its time", SOON, || {
        kubectl.try_run(["get", "job", "brief"]).map_or(Ok(()), |row| Err(row))
    });
    is_cleared(kubectl, "brief");
}

fn numbers(kubectl: &Kubectl) {
    let job = ends(kubectl, "numbered", "complete");
    assert_eq!((&job["status"]["completedIndexes"], &job["status"]["succeeded"]), (&json!("0-3"), &json!(4)), "{job}");
    let pods = pods_of(kubectl, "numbered");
    assert_eq!(pods.len(), 4);
    for pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let index = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"].as_str().unwrap();
        assert!(name.starts_with(&format!("numbered-{index}-")), "{name}");
        assert_eq!(kubectl.run(["logs", name]), format!("{index} on numbered-{index}\n"));
    }
    let job = ends(kubectl, "satisfied", "complete");
    assert_eq!((&job["status"]["completedIndexes"], &job["status"]["succeeded"]), (&json!("1"), &json!(1)), "{job}");
    let job = fails(kubectl, "by-index", "FailedIndexes");
    assert_eq!((&job["status"]["completedIndexes"], &job["status"]["failedIndexes"]), (&json!("0,2"), &json!("1")), "{job}");
}

fn fails_for_a_reason(kubectl: &Kubectl) {
    let job = fails(kubectl, "limited", "BackoffLimitExceeded");
    assert_eq!((&job["status"]["failed"], &job["status"]["succeeded"]), (&json!(1), &Value::Null), "{job}");
    let job = fails(kubectl, "policy", "PodFailurePolicy");
    let message = job["status"]["conditions"][1]["message"].as_str().unwrap();
    assert!(message.ends_with("failed with exit code 42 matching FailJob rule at index 0"), "{message}");
    assert_eq!(pods_of(kubectl, "policy").len(), 1);
    fails(kubectl, "deadline", "DeadlineExceeded");
    is_cleared(kubectl, "deadline");
    fails(kubectl, "restarted", "BackoffLimitExceeded");
}

fn suspends(kubectl: &Kubectl) {
    let paused = json!({"suspend": true, "parallelism": 2, "completions": 2});
    apply(kubectl, &[job("paused", "sleep 300", paused)]);
    let job = ends(kubectl, "paused", "suspended");
    assert!(job["status"]["startTime"].is_null() && pods_of(kubectl, "paused").is_empty(), "{job}");
    // Before it begins its pods may be sent elsewhere, but not be others.
    kubectl.run([
        "patch",
        "job",
        "paused",
        "-p",
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/os":"linux"}}}}}"#,
    ]);
    let other = r#"[{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"other"}]"#;
    let refused = kubectl.fails(["patch", "job", "paused", "--type=json", "-p", other]);
    assert!(refused.contains("field is immutable"), "{refused}");
    kubectl.run(["patch", "job", "paused", "-p", r#"{"spec":{"suspend":false}}"#]);
    let ready = "--for=jsonpath={.status.ready}=2";
    kubectl.run(["wait", ready, "job/paused", "--timeout=45s"]);
    kubectl.run(["patch", "job", "paused", "-p", r#"{"spec":{"suspend":true}}"#]);
    is_cleared(kubectl, "paused");
    let job = ends(kubectl, "paused", "suspended");
    assert!(job["status"]["failed"].is_null(), "pods that were suspended do not count: {job}");
    kubectl.run(["patch", "job", "paused", "-p", r#"{"spec":{"suspend":false}}"#]);
    kubectl.run(["wait", ready, "job/paused", "--timeout=45s"]);
    wait_for("the events", SOON, || {
        let events = kubectl.run(["events", "--for", "job/paused"]);
        let has = |part: &&str| events.contains(*part);
        if ["Suspended", "Resumed", "SuccessfulDelete"].iter().all(has) { Ok(()) } else { Err(events) }
    });
}

/// Pods go with their job though they wait to be counted, and stay if they are to.
fn deletes(kubectl: &Kubectl) {
    kubectl.run(["delete", "job", "paused"]);
    is_cleared(kubectl, "paused");
    kubectl.run(["delete", "job", "numbered", "--cascade=foreground"]);
    assert!(pods_of(kubectl, "numbered").is_empty());
    apply(kubectl, &[job("left", "sleep 300", json!({}))]);
    kubectl.run(["wait", "--for=jsonpath={.status.ready}=1", "job/left", "--timeout=45s"]);
    kubectl.run(["delete", "job", "left", "--cascade=orphan"]);
    wait_for("the pod to be nobody's", SOON, || {
        let meta = pods_of(kubectl, "left")[0]["metadata"].clone();
        let is_free = meta["finalizers"].is_null() && meta["ownerReferences"].is_null() && meta["deletionTimestamp"].is_null();
        if is_free { Ok(()) } else { Err(meta.to_string()) }
    });
    kubectl.run(["delete", "pod", "-l", "job-name=left"]);
}

fn backs_off(kubectl: &Kubectl) {
    let job = fails(kubectl, "late", "BackoffLimitExceeded");
    assert_eq!(job["status"]["failed"], 2, "{job}");
    let mut created: Vec<i64> = pods_of(kubectl, "late")
        .iter()
        .map(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second())
        .collect();
    created.sort_unstable();
    assert!(created.len() == 2 && (10..=20).contains(&(created[1] - created[0])), "{created:?}");
}

#[test]
fn a_killed_server_loses_and_doubles_nothing() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let many = json!({"completions": 9, "parallelism": 3});
    let mut numbered = json!({"completionMode": "Indexed"});
    merge(&mut numbered, many.clone());
    apply(&kubectl, &[job("many", "sleep 1; echo done", many), job("numbered", "sleep 1; echo done", numbered)]);
    for done in [2, 5] {
        wait_for("some of the pods to be counted", SOON, || {
            let succeeded = get(&kubectl, &["job", "many"])["status"]["succeeded"].as_i64().unwrap_or(0);
            if succeeded >= done { Ok(()) } else { Err(succeeded.to_string()) }
        });
        cluster.kill();
        cluster.spawn();
    }
    for name in ["many", "numbered"] {
        let job = ends(&kubectl, name, "complete");
        assert_eq!((&job["status"]["succeeded"], &job["status"]["failed"]), (&json!(9), &Value::Null), "{job}");
        let pods = pods_of(&kubectl, name);
        let is_ended = |pod: &Value| pod["status"]["phase"] == "Succeeded" && pod["metadata"]["finalizers"].is_null();
        assert!(pods.len() == 9 && pods.iter().all(is_ended), "{} pods: {pods:?}", pods.len());
        for pod in pods {
            assert_eq!(kubectl.run(["logs", pod["metadata"]["name"].as_str().unwrap()]), "done\n", "it ran: {pod}");
        }
    }
}

/// The jobs of the CronJob, by name.
fn started(kubectl: &Kubectl, cron_job: &str) -> Vec<String> {
    let jobs = get(kubectl, &["jobs"]);
    let is_of = |job: &&Value| job["metadata"]["ownerReferences"][0]["name"] == cron_job;
    let name = |job: &Value| job["metadata"]["name"].as_str().unwrap().to_owned();
    jobs["items"].as_array().unwrap().iter().filter(is_of).map(name).collect()
}

#[test]
fn cron_jobs_start_jobs() {
    let mut cluster = Cluster::start();
    let kubectl = cluster.kubectl("1.33");
    let template = json!({"spec": job("x", "echo tick", json!({}))["spec"]});
    let cron_job = |name: &str, schedule: &str, spec: Value| {
        let mut all = json!({"schedule": schedule, "jobTemplate": template});
        merge(&mut all, spec);
        json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": all})
    };
    let late = json!({"startingDeadlineSeconds": 0, "timeZone": "Europe/Berlin"});
    let hourly = [cron_job("tick", "* * * * *", json!({"timeZone": "Asia/Tokyo"})), cron_job("rare", "0 0 29 2 *", late)];
    apply(&kubectl, &hourly);
    let refused = kubectl.manifest(&["apply"], &cron_job("bad", "* * * * *", json!({"timeZone": "Mars/Base"})).to_string());
    assert!(refused.unwrap_err().contains("unknown time zone Mars/Base"));
    assert!(started(&kubectl, "tick").len() <= 1);
    // As if the last job had been started some minutes ago: one is due, whatever the second.
    let past = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5);
    let status = json!({"status": {"lastScheduleTime": past.strftime("%Y-%m-%dT%H:%M:00Z").to_string()}}).to_string();
    kubectl.run(["patch", "cronjob", "tick", "--subresource=status", "--type=merge", "-p", &status]);
    let name = wait_for("a job to be started", SOON, || {
        let described = kubectl.run(["describe", "cronjob", "tick"]);
        started(&kubectl, "tick")
            .into_iter()
            .next()
            .filter(|name| described.contains(&format!("Created job {name}")))
            .ok_or(described)
    });
    cluster.kill();
    cluster.spawn();
    let job = ends(&kubectl, &name, "complete");
    let minute = job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"].as_str().unwrap();
    assert!(minute.ends_with(":00+09:00"), "{minute}");
    let due = minute.parse::<jiff::Timestamp>().unwrap().as_second() / 60;
    assert_eq!(name, format!("tick-{due}"));
    assert_eq!(kubectl.run(["logs", &format!("job/{name}")]), "tick\n");
    wait_for("the end to be seen", SOON, || {
        let described = kubectl.run(["describe", "cronjob", "tick"]);
        let seen = described.contains(&format!("Saw completed job: {name}, status: Complete"));
        if seen && !described.contains("UnexpectedJob") { Ok(()) } else { Err(described) }
    });
    let status = get(&kubectl, &["cronjob", "tick"])["status"].clone();
    assert!(status["lastScheduleTime"].is_string() && status["lastSuccessfulTime"].is_string(), "{status}");
    let jobs = started(&kubectl, "tick");
    assert!(jobs.len() <= 2, "one a minute: {jobs:?}");
    by_hand(&kubectl);
    kubectl.run(["delete", "cronjob", "tick", "rare"]);
    is_cleared(&kubectl, &name);
}

/// A job from the template of a CronJob, and the limits of the history.
fn by_hand(kubectl: &Kubectl) {
    kubectl.run(["patch", "cronjob", "tick", "-p", r#"{"spec":{"suspend":true}}"#]);
    kubectl.run(["create", "job", "by-hand", "--from=cronjob/tick"]);
    ends(kubectl, "by-hand", "complete");
    let row = kubectl.run(["get", "cronjob", "rare", "--no-headers"]);
    assert!(row.contains("0 0 29 2 *") && row.contains("Europe/Berlin") && row.contains("<none>"), "{row}");
    kubectl.run(["patch", "cronjob", "tick", "-p", r#"{"spec":{"successfulJobsHistoryLimit":0}}"#]);
    wait_for("the history to be cleared", SOON, || {
        let left: Vec<String> = started(kubectl, "tick").into_iter().filter(|name| name != "by-hand").collect();
        if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
    });
}
