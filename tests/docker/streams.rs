//! Logs, exec, attach, port-forward and cp with the oldest, a middle and the newest kubectl: SPDY and WebSocket, much data, ends
//! and half-ends. One cluster serves all cases, which run side by side.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::pods::{MINUTE, container_id, get, make, sh, shell, until, until_ready, with};
use crate::support::{Cluster, KUBECTLS, Kubectl, docker, run, text, wait_for};

const LOG_BYTES: u64 = 64 << 10;
const LOG_FILES: usize = 3;

type Case = fn(&Cluster, &Kubectl);

fn run_cases(cluster: &Cluster, cases: &[(&str, Case)]) {
    let waiting = Mutex::new(cases.iter());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some((name, case)) = waiting.lock().unwrap().next() else { return };
                    let kubectl = cluster.kubectl("1.33");
                    kubectl.run(["create", "namespace", name]);
                    case(cluster, &kubectl.in_namespace(name));
                }
            });
        }
    });
}

#[test]
fn logs_with_every_flag() {
    let cluster = Cluster::start_with(&["--container-log-max-size=64Ki", "--container-log-max-files=3"]);
    cluster.wait_ready();
    run_cases(&cluster, &[("rotation", logs_are_rotated), ("following", following_ends_with_the_container), ("flags", flags)]);
}

#[test]
fn streams_in_both_directions() {
    let cluster = Cluster::start();
    let cases: [(&str, Case); 5] = [
        ("exec", commands_end_as_they_should),
        ("much", fifty_megabytes_each_way),
        ("attach", attached),
        ("forward", ports_are_forwarded),
        ("websocket", other_clients),
    ];
    run_cases(&cluster, &cases);
}

/// Size of the files of a container's log.
fn log_files(id: &str) -> Vec<u64> {
    let log = docker(["inspect", "-f", "{{.LogPath}}", id]);
    let folder = Path::new(log.trim()).parent().unwrap().to_owned();
    let entries = fs::read_dir(folder).unwrap().flatten();
    let logs = entries.filter(|entry| entry.file_name().to_string_lossy().contains("-json.log"));
    logs.map(|entry| entry.metadata().unwrap().len()).collect()
}

/// The numbers in a log, which must follow each other.
fn numbers(log: &str) -> Vec<u32> {
    let numbers: Vec<u32> = log.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap in {} lines", numbers.len());
    numbers
}

fn logs_are_rotated(_: &Cluster, kubectl: &Kubectl) {
    let many = "i=0; while [ $i -lt 6000 ]; do echo $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done";
    make(kubectl, "p", json!({"restartPolicy": "Never", "containers": [shell("c", many)]}));
    until(kubectl, "p", "{.status.phase}", "Succeeded");
    let sizes = log_files(&container_id(kubectl, "p"));
    assert_eq!(sizes.len(), LOG_FILES, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size < LOG_BYTES + 1_024), "{sizes:?}");
    let all = numbers(&kubectl.run(["logs", "p"]));
    assert!(all.len() > 600 && all.last() == Some(&5_999), "{} lines", all.len());
    for tail in ["1", "300", "900"] {
        let seen = numbers(&kubectl.run(["logs", "p", &format!("--tail={tail}")]));
        assert_eq!((seen.len().to_string().as_str(), seen.last()), (tail, Some(&5_999)));
    }
    // Whoever follows misses nothing, however often the log is rotated meanwhile.
    let slow = "i=0; while [ $i -lt 4000 ]; do echo $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); [ $((i%100)) = 0 ] && sleep 0.1; done";
    make(kubectl, "slow", json!({"restartPolicy": "Never", "containers": [shell("c", &format!("sleep 1; {slow}"))]}));
    until_ready(kubectl, "slow");
    let seen = numbers(&kubectl.run(["logs", "-f", "slow"]));
    assert_eq!((seen.first(), seen.last(), seen.len()), (Some(&0), Some(&3_999), 4_000));
}

fn following_ends_with_the_container(cluster: &Cluster, kubectl: &Kubectl) {
    // One that never says a word: only its end can end the following.
    make(
        kubectl,
        "quiet",
        json!({"restartPolicy": "Never", "containers": [shell("c", "until [ -e /end ]; do sleep 0.1; done")]}),
    );
    make(kubectl, "again", json!({"containers": [shell("c", "echo one; until [ -e /end ]; do sleep 0.1; done")]}));
    for pod in ["quiet", "again"] {
        until_ready(kubectl, pod);
        let follow = |version: &str| {
            let mut command = cluster.kubectl(version).in_namespace("following").command(["logs", "-f", pod]);
            command.stdout(Stdio::piped()).spawn().unwrap()
        };
        let mut following: Vec<Child> = KUBECTLS.into_iter().map(follow).collect();
        let mut first = [0_u8; 4];
        if pod == "again" {
            following.iter_mut().for_each(|child| child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap());
        } else {
            // They have nothing to read by which to know that they follow.
            std::thread::park_timeout(Duration::from_secs(1));
        }
        sh(kubectl, pod, "touch /end");
        let ended = Instant::now();
        for child in following {
            assert!(child.wait_with_output().unwrap().status.success());
        }
        assert!(ended.elapsed() < Duration::from_secs(5), "{:?}", ended.elapsed());
    }
    // One whose pod is deleted.
    until(kubectl, "again", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}", "1 true");
    let mut follow = kubectl.command(["logs", "-f", "again"]).stdout(Stdio::piped()).spawn().unwrap();
    kubectl.run(["delete", "pod", "again", "--timeout=30s"]);
    follow.wait().unwrap();
}

fn flags(cluster: &Cluster, kubectl: &Kubectl) {
    let app = |name: &str| shell(name, &format!("echo out {name}; echo err {name} >&2; exec sleep 1000"));
    let init = shell("i", "printf 'no newline'");
    make(kubectl, "p", json!({"initContainers": [init], "containers": [app("a"), app("b")]}));
    kubectl.run(["label", "pod", "p", "app=x"]);
    let crash = "test -e /v/x && { echo second; exec sleep 1000; }; touch /v/x; echo first; exit 1";
    let crash = with(shell("c", crash), json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    make(kubectl, "crash", json!({"containers": [crash], "volumes": [{"name": "v", "emptyDir": {}}]}));
    let times = shell("c", "echo early; sleep 4; echo late; sleep 1000");
    make(kubectl, "times", json!({"containers": [times]}));
    until_ready(kubectl, "p");
    until(kubectl, "crash", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}", "1 true");
    let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    for version in KUBECTLS {
        let kubectl = cluster.kubectl(version).in_namespace("flags");
        assert_eq!(kubectl.run(["logs", "p", "-c", "i"]), "no newline");
        assert_eq!(lines(kubectl.run(["logs", "p", "-c", "a"])), lines("out a\nerr a".to_owned()));
        let all = kubectl.run(["logs", "p", "--all-containers", "--prefix"]);
        for line in ["[pod/p/i] no newline", "[pod/p/a] out a", "[pod/p/b] err b"] {
            assert!(all.contains(line), "{version}: no {line:?} in {all}");
        }
        let last = kubectl.run(["logs", "-l", "app=x", "--all-containers", "--tail=1"]);
        assert!(last.contains("no newline") && matches!(last.lines().count(), 2 | 3), "{version}: {last}");
        let refused = kubectl.fails(["logs", "-f", "-l", "app=x", "--all-containers", "--max-log-requests=2"]);
        assert!(
            refused.contains("you are attempting to follow 3 log streams, but maximum allowed concurrency is 2"),
            "{refused}"
        );
        assert_eq!(kubectl.run(["logs", "crash"]), "second\n");
        assert_eq!(kubectl.run(["logs", "crash", "--previous"]), "first\n");
        let none = kubectl.fails(["logs", "p", "-c", "a", "-p"]);
        assert!(none.contains("previous terminated container \"a\" in pod \"p\" not found"), "{none}");
        assert_eq!(kubectl.run(["logs", "crash", "--limit-bytes=3"]), "sec");
        assert_eq!(kubectl.run(["logs", "crash", "--tail=0"]), "");
        let stamped = kubectl.run(["logs", "crash", "--timestamps"]);
        let (time, rest) = stamped.split_once(' ').unwrap();
        assert!(rest == "second\n" && time.len() == "2006-01-02T15:04:05.000000000Z".len() && time.ends_with('Z'), "{stamped}");
        let late = kubectl.fails(["logs", "none"]);
        assert!(late.contains("pods \"none\" not found"), "{late}");
    }
    wait_for("the late line", MINUTE, || {
        let seen = kubectl.run(["logs", "times"]);
        if seen == "early\nlate\n" { Ok(()) } else { Err(seen) }
    });
    let stamped = kubectl.run(["logs", "times", "--timestamps"]);
    let late = stamped.lines().nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(kubectl.run(["logs", "times", &format!("--since-time={late}")]), "late\n");
    assert_eq!(kubectl.run(["logs", "times", "--since=1h"]), "early\nlate\n");
    wrong_options(kubectl);
}

fn wrong_options(kubectl: &Kubectl) {
    let table = [
        ("tailLines=-1", "PodLogOptions \"times\" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0"),
        ("limitBytes=0", "PodLogOptions \"times\" is invalid: limitBytes: Invalid value: 0: must be greater than 0"),
        ("sinceSeconds=0", "PodLogOptions \"times\" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0"),
        ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", "at most one of `sinceTime` or `sinceSeconds` may be specified"),
        ("container=nobody", "container nobody is not valid for pod times"),
    ];
    for (query, words) in table {
        let refused = kubectl.fails(["get", "--raw", &format!("/api/v1/namespaces/flags/pods/times/log?{query}")]);
        assert!(refused.contains(words), "{query}: {refused}");
    }
    make(kubectl, "waits", json!({"containers": [with(shell("c", ""), json!({"image": "none:1", "imagePullPolicy": "Never"}))]}));
    until(kubectl, "waits", "{.status.containerStatuses[0].state.waiting.reason}", "ErrImageNeverPull");
    let refused = kubectl.fails(["logs", "waits"]);
    assert!(refused.contains("container \"c\" in pod \"waits\" is waiting to start"), "{refused}");
}

/// Runs a command with bytes on its standard input, which then ends.
fn fed(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A command that ends early closes it.
            let _closed = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}

fn commands_end_as_they_should(cluster: &Cluster, kubectl: &Kubectl) {
    make(kubectl, "p", json!({"containers": [shell("c", "exec sleep 1000")]}));
    until_ready(kubectl, "p");
    for version in KUBECTLS {
        let kubectl = cluster.kubectl(version).in_namespace("exec");
        for code in [0, 1, 42, 137] {
            let output = kubectl.output(["exec", "p", "--", "sh", "-c", &format!("echo o; echo e >&2; exit {code}")]);
            assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(code), "o\n"), "{version}");
            assert!(text(&output.stderr).starts_with("e\n"), "{version}: {}", text(&output.stderr));
        }
        let none = kubectl.output(["exec", "p", "--", "no-such-command"]);
        let said = format!("{}{}", text(&none.stdout), text(&none.stderr));
        assert!(said.contains("\"no-such-command\": executable file not found"), "{version}: {said}");
        assert_eq!(none.status.code(), Some(126), "{version}: {said}");
        // The end of standard input is told, and the outputs go on.
        let half = fed(kubectl.command(["exec", "-i", "p", "--", "sh", "-c", "wc -c; sleep 0.3; echo after"]), b"12345");
        assert_eq!(text(&half.stdout), "5\nafter\n", "{version}: {}", text(&half.stderr));
        // A command that reads nothing ends although its input does not.
        let mut endless = kubectl.command(["exec", "-i", "p", "--", "sh", "-c", "echo done"]);
        let mut child = endless.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let held = child.stdin.take();
        assert_eq!(text(&child.wait_with_output().unwrap().stdout), "done\n", "{version}");
        drop(held);
        // Much output that is not read at once comes whole.
        let much = kubectl.output(["exec", "p", "--", "sh", "-c", "seq 1 200000; seq 1 1000 >&2"]);
        assert_eq!(text(&much.stdout).lines().count(), 200_000, "{version}");
        assert_eq!(text(&much.stderr).lines().count(), 1_000, "{version}");
    }
}

fn sha256(path: &Path) -> String {
    run("sha256sum", [path]).split(' ').next().unwrap().to_owned()
}

fn fifty_megabytes_each_way(cluster: &Cluster, kubectl: &Kubectl) {
    make(kubectl, "p", json!({"containers": [shell("c", "exec sleep 1000")]}));
    until_ready(kubectl, "p");
    let file = cluster.folder.path().join("fifty");
    run("dd", ["if=/dev/urandom".to_owned(), format!("of={}", file.display()), "bs=1M".to_owned(), "count=50".to_owned()]);
    let sum = sha256(&file);
    for version in ["1.20", "1.37"] {
        let kubectl = cluster.kubectl(version).in_namespace("much");
        let mut through = kubectl.command(["exec", "-i", "p", "--", "sha256sum"]);
        let output = through.stdin(fs::File::open(&file).unwrap()).output().unwrap();
        assert_eq!(text(&output.stdout).split(' ').next(), Some(sum.as_str()), "{version}: {}", text(&output.stderr));
        kubectl.run(["cp", file.to_str().unwrap(), &format!("p:/tmp/{version}")]);
        assert!(sh(&kubectl, "p", &format!("sha256sum /tmp/{version}")).starts_with(&sum), "{version}");
        let back = cluster.folder.path().join(format!("back-{version}"));
        kubectl.run(["cp", &format!("p:/tmp/{version}"), back.to_str().unwrap()]);
        assert_eq!(sha256(&back), sum, "{version}");
        fs::remove_file(back).unwrap();
    }
    fs::remove_file(file).unwrap();
}

fn attached(cluster: &Cluster, kubectl: &Kubectl) {
    let once = with(shell("c", "cat; echo the end"), json!({"stdin": true, "stdinOnce": true}));
    let counts = with(shell("c", "while read line; do echo got $line; done"), json!({"stdin": true}));
    for version in KUBECTLS {
        let own = cluster.kubectl(version).in_namespace("attach");
        let name = format!("v{}", version.replace('.', "-"));
        // With `stdinOnce` the end of the first client's input is the end of the container's.
        make(&own, &format!("once-{name}"), json!({"restartPolicy": "Never", "containers": [once.clone()]}));
        until_ready(&own, &format!("once-{name}"));
        let output = fed(own.command(["attach", "-i", &format!("once-{name}")]), b"hello\n");
        assert!(text(&output.stdout).contains("hello\nthe end\n"), "{version}: {output:?}");
        until(&own, &format!("once-{name}"), "{.status.phase}", "Succeeded");
        // Without it the next client goes on where the first one ended.
        let lasting = format!("lasting-{name}");
        make(&own, &lasting, json!({"containers": [counts.clone()]}));
        until_ready(&own, &lasting);
        for word in ["one", "two"] {
            let mut command = own.command(["attach", "-i", &lasting]);
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(format!("{word}\n").as_bytes()).unwrap();
            let mut answer = vec![0; "got one\n".len()];
            child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
            assert_eq!(text(&answer), format!("got {word}\n"), "{version}");
            drop(stdin);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(get(&own, &lasting, "{.status.containerStatuses[0].restartCount}"), "0", "{version}");
        own.run(["delete", "pod", &lasting, "--wait=false"]);
        runs_with_stdin(&own, version, &name);
    }
    let refused = kubectl.fails(["attach", "once-v1-20"]);
    assert!(refused.contains("cannot attach a container in a completed pod; current phase is Succeeded"), "{refused}");
}

/// `kubectl run -i --rm`: the output and the exit code of a one-off container.
fn runs_with_stdin(kubectl: &Kubectl, version: &str, name: &str) {
    let start = |name: &str, script: &str| {
        let image = ["--image=busybox", "--image-pull-policy=IfNotPresent", "--restart=Never", "--rm", "-i", "--quiet"];
        kubectl.command(["run", name].into_iter().chain(image).chain(["--", "sh", "-c", script]))
    };
    let output = fed(start(&format!("run-{name}"), "sha256sum"), &vec![7; 3 << 20]);
    let expected = run("sh", ["-c", "head -c 3145728 /dev/zero | tr '\\0' '\\7' | sha256sum"]);
    assert!(text(&output.stdout).contains(expected.trim()), "{version}: {output:?}");
    let output = fed(start(&format!("fails-{name}"), "cat; exit 5"), b"x\n");
    assert_eq!(output.status.code(), Some(5), "{version}: {output:?}");
    for pod in ["run", "fails"] {
        let gone = kubectl.fails(["get", "pod", &format!("{pod}-{name}")]);
        assert!(gone.contains("NotFound"), "{gone}");
    }
}

/// A `kubectl port-forward` that listens.
struct Forward(Child, u16);

impl Forward {
    fn start(kubectl: &Kubectl, target: &str, port: u16) -> Self {
        let mut command = kubectl.command(["port-forward", target, &format!(":{port}")]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = Vec::new();
        let stdout = child.stdout.as_mut().unwrap();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let line = text(&line);
        let port = line.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next()).unwrap().parse().unwrap();
        Self(child, port)
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.1)).unwrap()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn ports_are_forwarded(cluster: &Cluster, kubectl: &Kubectl) {
    // What a connection sends comes back, with a last word after its end.
    let echo = "mkdir /s; printf '#!/bin/sh\\ncat\\necho the end\\n' > /s/echo; chmod +x /s/echo; exec nc -ll -p 7000 -e /s/echo";
    make(kubectl, "p", json!({"containers": [shell("c", echo)]}));
    make(kubectl, "web", json!({"containers": [{"name": "c", "image": "nginx:1.14"}]}));
    until_ready(kubectl, "p");
    until_ready(kubectl, "web");
    kubectl.run(["expose", "pod", "web", "--port=8000", "--target-port=80", "--selector=none=none"]);
    for version in KUBECTLS {
        let kubectl = cluster.kubectl(version).in_namespace("forward");
        let forward = Forward::start(&kubectl, "pod/p", 7_000);
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut connection = forward.connect();
                    let mut reader = connection.try_clone().unwrap();
                    let data = &data;
                    let write = scope.spawn(move || {
                        connection.write_all(data).unwrap();
                        connection.shutdown(Shutdown::Write).unwrap();
                    });
                    let mut seen = Vec::new();
                    reader.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    reader.read_to_end(&mut seen).unwrap();
                    write.join().unwrap();
                    let (echoed, rest) = seen.split_at(data.len().min(seen.len()));
                    assert!(echoed == data.as_slice() && rest == b"the end\n", "{version}: {} bytes came back", seen.len());
                });
            }
        });
        let web = Forward::start(&kubectl, "pod/web", 80);
        for _ in 0..20 {
            let page = crate::support::curl(&format!("http://127.0.0.1:{}/", web.1)).unwrap();
            assert!(page.contains("Welcome to nginx!"), "{version}: {page}");
        }
        // A port on which nobody listens: the connection ends, and kubectl says why.
        let mut nobody = Forward::start(&kubectl, "pod/web", 81);
        let mut rest = Vec::new();
        let _ended = nobody.connect().read_to_end(&mut rest);
        assert!(rest.is_empty());
        let mut said = vec![0; 2_048];
        let length = nobody.0.stderr.as_mut().unwrap().read(&mut said).unwrap();
        let said = text(&said[..length]);
        assert!(said.contains("Connection refused") || said.contains("connection refused"), "{version}: {said}");
    }
}

/// The channel protocols that no kubectl speaks (v4, base64), and the sizes of a terminal.
fn other_clients(cluster: &Cluster, kubectl: &Kubectl) {
    make(kubectl, "p", json!({"containers": [with(shell("c", "cat"), json!({"stdin": true}))]}));
    make(kubectl, "tty", json!({"containers": [with(shell("c", "exec sh"), json!({"stdin": true, "tty": true}))]}));
    until_ready(kubectl, "p");
    until_ready(kubectl, "tty");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command.arg(root.join("tests/docker/streams.py")).env("KUBECONFIG", cluster.kubeconfig());
    let output = command.env("PYTHONPATH", root.join("target/tools/python")).output().unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.ends_with("done\n"), "{said}");
    for version in KUBECTLS {
        let kubectl = cluster.kubectl(version).in_namespace("websocket");
        let words: Vec<String> =
            kubectl.command(["attach", "-it", "tty"]).get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
        let program = kubectl.command(["x"]).get_program().to_string_lossy().into_owned();
        // The container's terminal gets the size of the client's.
        let script = format!("stty rows 40 cols 111; exec {program} {}", words.join(" "));
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &script, "/dev/null"]).env("KUBECONFIG", cluster.kubeconfig());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut seen = String::new();
        let mut buffer = [0; 1_024];
        let end = Instant::now() + Duration::from_secs(20);
        while !seen.contains("40 111") {
            assert!(Instant::now() < end, "{version}: {seen}");
            stdin.write_all(b"stty size\n").unwrap();
            let length = child.stdout.as_mut().unwrap().read(&mut buffer).unwrap();
            seen.push_str(&text(&buffer[..length]));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
