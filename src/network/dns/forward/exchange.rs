//! One question to one upstream: over UDP from a port and with an id that cannot be guessed, over TCP where the answer is too long.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::super::message::{HEADER, rtype};
use super::super::name::Name;
use crate::rt::random;

/// Largest answer that upstreams are asked for over UDP (the DNS flag day's size).
const UDP_SIZE: [u8; 2] = 1_232_u16.to_be_bytes();

/// What is asked.
#[derive(Debug, Clone)]
pub(in super::super) struct Question {
    pub(in super::super) name: Name,
    pub(in super::super) qtype: u16,
    pub(in super::super) dnssec_ok: bool,
    pub(in super::super) checking_disabled: bool,
}

impl Question {
    /// What tells this question from others.
    pub(in super::super) fn key(&self) -> Vec<u8> {
        let flags = u8::from(self.dnssec_ok) | u8::from(self.checking_disabled) << 1;
        [self.name.wire(), &self.qtype.to_be_bytes(), &[flags]].concat()
    }

    fn message(&self, id: [u8; 2]) -> Vec<u8> {
        let checking = u8::from(self.checking_disabled) << 4;
        let mut message = vec![id[0], id[1], 0x01, checking, 0, 1, 0, 0, 0, 0, 0, 1];
        message.extend_from_slice(self.name.wire());
        message.extend_from_slice(&self.qtype.to_be_bytes());
        message.extend_from_slice(&[0, 1, 0]);
        message.extend_from_slice(&rtype::OPT.to_be_bytes());
        message.extend_from_slice(&UDP_SIZE);
        message.extend_from_slice(&[0, 0, u8::from(self.dnssec_ok) << 7, 0, 0, 0]);
        message
    }

    /// Whether a message answers this question.
    fn is_answered_by(&self, id: [u8; 2], message: &[u8]) -> bool {
        message.len() > HEADER
            && message[..2] == id
            && message[2] & 0x80 != 0
            && Name::parse(message, HEADER).is_some_and(|(name, end)| {
                name == self.name && message.get(end..end + 2).is_some_and(|qtype| qtype == self.qtype.to_be_bytes())
            })
    }
}

/// Asks and waits for the answer, at most `patience`.
///
/// # Errors
/// When no answer came in time, or nobody listens there: another upstream may do.
pub(super) async fn exchange(upstream: SocketAddr, question: &Question, patience: Duration) -> io::Result<Vec<u8>> {
    let mut id = [0; 2];
    random::fill(&mut id);
    let message = question.message(id);
    let answer = timeout(patience, over_udp(upstream, question, id, &message)).await??;
    if answer[2] & 0x02 == 0 {
        return Ok(answer);
    }
    timeout(patience, over_tcp(upstream, question, id, &message)).await?
}

async fn over_udp(upstream: SocketAddr, question: &Question, id: [u8; 2], message: &[u8]) -> io::Result<Vec<u8>> {
    let local = if upstream.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(upstream).await?;
    socket.send(message).await?;
    let mut answer = vec![0; 4_096];
    loop {
        let length = socket.recv(&mut answer).await?;
        if question.is_answered_by(id, &answer[..length]) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, question: &Question, id: [u8; 2], message: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    if question.is_answered_by(id, &answer) { Ok(answer) } else { Err(io::Error::other("an answer to another question")) }
}
