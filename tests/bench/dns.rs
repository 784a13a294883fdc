//! Answers of the cluster's DNS per second of the server process's CPU (its kernel half too), and how long one takes. CoreDNS publishes
//! 33,669 internal questions a second on two processors.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::{Runtime, Server, figure, median};

const SERVER: &str = "10.98.0.10:53";
const COREDNS: f64 = 16_800.0;
/// Questions on the way at one time.
const WINDOW: usize = 64;
const ROUNDS: usize = 5_000;
const SINGLES: usize = 10_000;

pub fn run(runtime: &Runtime) {
    let server = Server::new(runtime, true);
    server.wait(runtime, "/api/v1/nodes/bench", |body| body.contains("KubeletReady"));
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(SERVER.parse::<SocketAddr>().expect("an address")).expect("a connection");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    let service = question("kubernetes.default.svc.cluster.local", 1);
    wait_for_answer(&socket, &service);
    let mixed = [
        service.clone(),
        question("kubernetes.default.svc.cluster.local", 28),
        question("kubernetes.default.default.svc.cluster.local", 1),
        question("kube-dns.kube-system.svc.cluster.local", 1),
    ];
    for (name, questions) in [("a Service's address", &mixed[..1]), ("addresses, no data, no such name", &mixed[..])] {
        let (before, start) = (server.cpu_seconds(), Instant::now());
        let answers = flood(&socket, questions);
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), server.cpu_seconds() - before);
        figure(&format!("DNS answers per CPU-second, {name}"), answers as f64 / cpu, "1/s", Some(("CoreDNS", COREDNS)));
        figure("    answers per second, client on the same cores", answers as f64 / elapsed, "1/s", None);
    }
    let mut times: Vec<f64> = (0..SINGLES).map(|_| single(&socket, &service)).collect();
    times.sort_by(f64::total_cmp);
    figure("DNS latency, p50", median(times.clone()) * 1e6, "us", None);
    figure("DNS latency, p99", times[times.len() * 99 / 100] * 1e6, "us", None);
}

/// With EDNS0, as resolvers ask today.
fn question(name: &str, qtype: u8) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, qtype, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    message
}

fn wait_for_answer(socket: &UdpSocket, question: &[u8]) {
    let mut buffer = [0; 4_096];
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        // Before the server listens, the socket tells that nobody does.
        let _refused = socket.send(question);
        if socket.recv(&mut buffer).is_ok_and(|length| length > 12 && buffer[3] & 15 == 0) {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    panic!("{SERVER} does not answer");
}

/// Asks in windows; the number of answers.
fn flood(socket: &UdpSocket, questions: &[Vec<u8>]) -> usize {
    let mut buffer = [0; 4_096];
    let mut answers = 0;
    for _ in 0..ROUNDS {
        for at in 0..WINDOW {
            socket.send(&questions[at % questions.len()]).expect("sent");
        }
        answers += (0..WINDOW).take_while(|_| socket.recv(&mut buffer).is_ok()).count();
    }
    assert!(answers * 100 >= ROUNDS * WINDOW * 99, "more than one in a hundred was lost: {answers}");
    answers
}

fn single(socket: &UdpSocket, question: &[u8]) -> f64 {
    let mut buffer = [0; 4_096];
    let start = Instant::now();
    socket.send(question).expect("sent");
    socket.recv(&mut buffer).expect("an answer");
    start.elapsed().as_secs_f64()
}
