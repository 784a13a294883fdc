//! A blocking socket of `NETLINK_NETFILTER`: requests in, answers out.

use std::io;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use rtnetlink::sys;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;

use super::NftError;
use super::batch::{Batch, FIRST};
use super::message::{self, Attributes, Message, Writer, flags, messages, u32_at};

/// Time for the kernel to go on with a list that it has begun.
const ANSWER_SECONDS: i64 = 10;
/// The kernel's answers come in pieces of at most 32 KiB.
const READ_BYTES: usize = 64 << 10;
/// Room for answers: an error for each operation of a large batch.
const RECEIVE_BYTES: usize = 4 << 20;
/// Room beside the batch itself.
const SEND_SPARE_BYTES: usize = 64 << 10;
/// How often a list is begun again when the tables changed meanwhile.
const LIST_ATTEMPTS: usize = 20;
/// Attribute of an error: the kernel's own words.
const ERROR_TEXT: u16 = 1;

fn failed(step: &'static str) -> impl Fn(io::Error) -> NftError {
    move |source| NftError::Socket { step, source }
}

pub(super) struct Socket {
    socket: sys::Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
    send_bytes: usize,
}

impl Socket {
    pub(super) fn open() -> Result<Self, NftError> {
        let mut socket = sys::Socket::new(NETLINK_NETFILTER).map_err(failed("open"))?;
        let port = socket.bind_auto().map_err(failed("bind"))?.port_number();
        socket.set_cap_ack(true).map_err(failed("set up"))?;
        socket.set_ext_ack(true).map_err(failed("set up"))?;
        let set_up = |errno: Errno| failed("set up")(errno.into());
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS)).map_err(set_up)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BYTES).map_err(set_up)?;
        Ok(Self { socket, port, sequence: 1, buffer: Vec::with_capacity(READ_BYTES), send_bytes: 0 })
    }

    pub(super) const fn port(&self) -> u32 {
        self.port
    }

    /// Sends a whole transaction. The kernel works on it before the call returns; what it refused is then there to be read.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), NftError> {
        let (writer, operations) = batch.finish();
        self.drain()?;
        self.send(&writer)?;
        let mut refused: Option<(u32, Errno, Option<String>)> = None;
        let mut more = 0;
        while self.receive(MsgFlags::MSG_DONTWAIT)? {
            for message in messages(&self.buffer) {
                let Some((errno, reason)) = error_of(&message) else { continue };
                match refused {
                    None => refused = Some((message.sequence, errno, reason)),
                    Some(_) => more += 1,
                }
            }
        }
        let Some((sequence, errno, reason)) = refused else { return Ok(()) };
        let index = sequence.checked_sub(FIRST).and_then(|index| usize::try_from(index).ok());
        let operation = index.and_then(|index| operations.get(index));
        let operation = operation.map_or_else(|| "change tables".to_owned(), ToString::to_string);
        Err(NftError::Refused { operation, errno, reason, more })
    }

    /// Asks for a list and hands each message of it to `read`. Begins anew if the tables changed meanwhile.
    pub(super) fn list<T>(
        &mut self,
        operation: &str,
        kind: u16,
        family: u8,
        fill: impl Fn(&mut Writer),
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        for _ in 0..LIST_ATTEMPTS {
            let sequence = self.request(kind, flags::REQUEST | flags::DUMP, family, &fill)?;
            if let Some(found) = self.read_list(operation, sequence, &read)? {
                return Ok(found);
            }
        }
        Err(NftError::Interrupted { operation: operation.to_owned() })
    }

    /// `None`: the tables changed meanwhile.
    fn read_list<T>(
        &mut self,
        operation: &str,
        sequence: u32,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NftError> {
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            if !self.receive(MsgFlags::empty())? {
                return Err(failed("wait for an answer")(io::ErrorKind::TimedOut.into()));
            }
            for message in messages(&self.buffer).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & flags::DUMP_INTERRUPTED != 0;
                match message.kind {
                    message::DONE | message::ERROR => {
                        return match error_of(&message) {
                            Some((Errno::EINTR | Errno::EAGAIN, _)) => Ok(None),
                            Some((errno, reason)) => {
                                Err(NftError::Refused { operation: operation.to_owned(), errno, reason, more: 0 })
                            }
                            None => Ok((!interrupted).then_some(found)),
                        };
                    }
                    _ => found.extend(read(&message)),
                }
            }
        }
    }

    /// Sends a request and waits for the kernel's yes or no.
    pub(super) fn ask(&mut self, operation: &str, kind: u16, family: u8, fill: impl Fn(&mut Writer)) -> Result<(), NftError> {
        let sequence = self.request(kind, flags::REQUEST | flags::ACK, family, fill)?;
        loop {
            if !self.receive(MsgFlags::empty())? {
                return Err(failed("wait for an answer")(io::ErrorKind::TimedOut.into()));
            }
            for message in messages(&self.buffer).filter(|message| message.sequence == sequence) {
                if message.kind == message::ERROR {
                    let Some((errno, reason)) = error_of(&message) else { return Ok(()) };
                    return Err(NftError::Refused { operation: operation.to_owned(), errno, reason, more: 0 });
                }
            }
        }
    }

    fn request(&mut self, kind: u16, flags: u16, family: u8, fill: impl Fn(&mut Writer)) -> Result<u32, NftError> {
        self.drain()?;
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut writer = Writer::default();
        let mark = writer.begin(kind, flags, self.sequence, family, 0);
        fill(&mut writer);
        writer.end(mark);
        self.send(&writer)?;
        Ok(self.sequence)
    }

    /// The socket's buffer must be larger than the message.
    fn send(&mut self, writer: &Writer) -> Result<(), NftError> {
        let needed = writer.len() + SEND_SPARE_BYTES;
        if needed > self.send_bytes {
            setsockopt(&self.socket, sockopt::SndBufForce, &needed).map_err(|errno| failed("make room")(errno.into()))?;
            self.send_bytes = needed;
        }
        self.socket.send_to(writer.bytes(), &sys::SocketAddr::new(0, 0), 0).map_err(failed("send"))?;
        Ok(())
    }

    /// Reads one datagram into the buffer; false if there is none.
    fn receive(&mut self, flags: MsgFlags) -> Result<bool, NftError> {
        self.buffer.clear();
        match self.socket.recv(&mut self.buffer, flags.bits()) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(failed("receive")(error)),
        }
    }

    /// Throws away what an earlier request left.
    fn drain(&mut self) -> Result<(), NftError> {
        while self.receive(MsgFlags::MSG_DONTWAIT)? {}
        Ok(())
    }
}

/// The error in a message, with the kernel's words; `None` for a yes.
fn error_of(message: &Message<'_>) -> Option<(Errno, Option<String>)> {
    if message.kind != message::ERROR && message.kind != message::DONE {
        return None;
    }
    let code = u32_at(message.payload, 0)?.cast_signed();
    if code == 0 {
        return None;
    }
    let text = || {
        if message.kind != message::ERROR || message.flags & flags::HAS_ATTRIBUTES == 0 {
            return None;
        }
        let repeated = match message.flags & flags::CAPPED {
            0 => usize::try_from(u32_at(message.payload, 4)?).ok()?.next_multiple_of(4),
            _ => message::HEADER,
        };
        Attributes(message.payload.get(4 + repeated..)?).text(ERROR_TEXT).map(str::to_owned)
    };
    Some((Errno::from_raw(code.saturating_neg()), text()))
}
