//! Notices when somebody else changes a table: netfilter tells every transaction to who listens (`NFNLGRP_NFTABLES`).

use std::io;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, TokioSocket};

use super::NftError;
use super::message::{SUBSYSTEM_NFTABLES, messages};
use super::types::Table;

/// The group of nf_tables' events.
const GROUP: u32 = 7;
/// The message that ends a transaction's events.
const NEW_GENERATION: u16 = 15;
const READ_BYTES: usize = 64 << 10;
/// Room for events that wait: those of a transaction of some 10,000 elements.
const RECEIVE_BYTES: usize = 8 << 20;

/// What [`Monitor::changed`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// Somebody else's transaction touched the table.
    Foreign,
    /// There were more events than fit: the table may have been touched.
    Lost,
}

/// Watches one table.
pub struct Monitor {
    socket: TokioSocket,
    table: Table,
    /// The socket whose transactions are our own.
    own_port: u32,
    touched: bool,
    buffer: Vec<u8>,
}

impl Monitor {
    pub(super) fn open(table: &Table, own_port: u32) -> Result<Self, NftError> {
        let failed = |source| NftError::Socket { step: "listen to events", source };
        let mut socket = TokioSocket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.socket_mut().bind_auto().map_err(failed)?;
        socket.socket_ref().add_membership(GROUP).map_err(failed)?;
        setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &RECEIVE_BYTES).map_err(|errno| failed(errno.into()))?;
        Ok(Self { socket, table: table.clone(), own_port, touched: false, buffer: Vec::with_capacity(READ_BYTES) })
    }

    /// Waits until a transaction of somebody else touched the table. Cancel safe.
    ///
    /// # Errors
    /// [`NftError::Socket`]; the monitor is of no use then.
    pub async fn changed(&mut self) -> Result<Changed, NftError> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer).await {
                Ok(()) if self.look() => return Ok(Changed::Foreign),
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    self.touched = false;
                    return Ok(Changed::Lost);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NftError::Socket { step: "receive events", source }),
            }
        }
    }

    /// Whether a transaction that touched the table has ended.
    fn look(&mut self) -> bool {
        let mut ended = false;
        for message in messages(&self.buffer) {
            if message.kind == SUBSYSTEM_NFTABLES | NEW_GENERATION {
                ended |= std::mem::take(&mut self.touched);
            } else if message.port != self.own_port
                && message.family() == Some(self.table.family as u8)
                && message.attributes().text(1) == Some(&self.table.name)
            {
                self.touched = true;
            }
        }
        ended
    }
}
