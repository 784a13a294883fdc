//! A test program for containers, in std only, linked statically:
//!
//! - `serve [PORT]`: HTTP on PORT (8080): `/` hostname, `/env`, `/exit?CODE` ends the process, `/health` 200 or, after `/fail`, 500,
//!   `/ip` the caller's address; TCP echo on PORT+1; UDP echo on PORT+2. SIGTERM ends it at once (no handler: PID 1 dies by `/exit` or KILL).
//! - `exit CODE [SECONDS]`: ends with CODE after SECONDS.
//! - `print N`: N lines to standard output and error, then waits.
//! - `allocate MB`: takes and touches memory, then waits.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

static HEALTHY: AtomicBool = AtomicBool::new(true);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    match arguments.first().map(String::as_str) {
        Some("serve") | None => serve(number(1, 8080) as u16),
        Some("exit") => {
            thread::sleep(Duration::from_secs(number(2, 0)));
            std::process::exit(number(1, 0) as i32);
        }
        Some("print") => {
            for line in 0..number(1, 1) {
                println!("out {line}");
                eprintln!("err {line}");
            }
            wait();
        }
        Some("allocate") => {
            let memory = vec![1_u8; (number(1, 1) << 20) as usize];
            println!("{}", memory.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
            wait();
        }
        Some(other) => {
            eprintln!("orch-test: no command {other}");
            std::process::exit(2);
        }
    }
}

fn wait() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn serve(port: u16) {
    thread::spawn(move || echo_tcp(port + 1));
    thread::spawn(move || echo_udp(port + 2));
    let listener = TcpListener::bind(("0.0.0.0", port)).expect("bind the HTTP port");
    println!("serving on {port}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || drop(answer(stream)));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let target = line.split(' ').nth(1).unwrap_or("/").to_owned();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (status, body) = match path {
            "/env" => (200, std::env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
            "/ip" => (200, peer.ip().to_string()),
            "/exit" => std::process::exit(query.parse().unwrap_or(0)),
            "/fail" => {
                HEALTHY.store(false, Ordering::SeqCst);
                (200, "failing".to_owned())
            }
            "/health" if HEALTHY.load(Ordering::SeqCst) => (200, "ok".to_owned()),
            "/health" => (500, "not ok".to_owned()),
            _ => (200, std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned()),
        };
        println!("{target} {status}");
        write!(stream, "HTTP/1.1 {status} x\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n{body}", body.len())?;
        line.clear();
    }
    Ok(())
}

fn echo_tcp(port: u16) {
    let Ok(listener) = TcpListener::bind(("0.0.0.0", port)) else { return };
    for mut stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        });
    }
}

fn echo_udp(port: u16) {
    let Ok(socket) = UdpSocket::bind(("0.0.0.0", port)) else { return };
    let mut buffer = [0_u8; 65_536];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
        drop(socket.send_to(&buffer[..length], peer));
    }
}
