//! nf_tables, the kernel's packet filter, spoken to by netlink: no `nft` program is needed.
//!
//! # How it is used
//!
//! [`Nft::open`] opens a socket in the network namespace of the calling thread; clones share it. Changes are gathered in a
//! [`Batch`] and sent by [`Nft::commit`]: the kernel carries out all of it or none, and packets see either the old rules or the
//! new ones. A batch may be large (10,000 Services are some megabytes); an error names the operation that the kernel refused.
//!
//! ```no_run
//! # async fn example() -> Result<(), orch::network::nft::NftError> {
//! use orch::network::nft::expr::{self, Reg, match_ct_state, state};
//! use orch::network::nft::{Base, Batch, ChainKind, Element, Family, Hook, Key, Nft, Rule, Set, Table, Type, Verdict, priority};
//!
//! let nft = Nft::open()?;
//! let table = Table::new(Family::Ipv4, "example");
//! // "Which pod is it" is one look into a verdict map, however many pods there are: `ip daddr vmap @pods`.
//! let pods = Set::verdict_map("pods", &[Type::Ipv4Addr]);
//! // Addresses and networks that may come in: `ip saddr . meta l4proto . th dport @friends accept`.
//! let friends = Set::of("friends", &[Type::Ipv4Addr, Type::InetProto, Type::InetService]).interval();
//! let mut batch = Batch::new();
//! batch.remove_table(&table);
//! batch.add_table(&table);
//! batch.add_set(&table, &pods);
//! batch.add_set(&table, &friends);
//! batch.add_chain(&table, "pod-a");
//! batch.add_base_chain(&table, "forward", Base::accepting(ChainKind::Filter, Hook::Forward, priority::FILTER));
//! let established = Rule::of([match_ct_state(state::ESTABLISHED | state::RELATED), vec![expr::Expr::Verdict(Verdict::Accept)]]);
//! batch.add_rule(&table, "forward", &established);
//! batch.add_rule(&table, "forward", &Rule::new([expr::ip_daddr(Reg(0)), expr::vmap("pods", Reg(0))]));
//! let source = [expr::ip_saddr(Reg(0)), expr::l4proto(Reg(1)), expr::dport(Reg(2)), expr::in_set("friends", Reg(0), true)];
//! let allow = Rule::new(source.into_iter().chain([expr::Expr::Verdict(Verdict::Accept)]));
//! batch.add_rule(&table, "pod-a", &allow.comment("policy default/web"));
//! batch.add_rule(&table, "pod-a", &Rule::new([expr::Expr::Verdict(Verdict::Drop)]));
//! let key = Key::new().ipv4([10, 42, 0, 5].into());
//! batch.add_elements(&table, &pods, &[Element::new(key).verdict(Verdict::goto("pod-a"))]);
//! let (first, last) = (Key::new().ipv4([10, 0, 0, 0].into()), Key::new().ipv4([10, 0, 0, 255].into()));
//! let ports = Element::range(first.proto(6).port(80), last.proto(6).port(80));
//! batch.add_elements(&table, &friends, &[ports]);
//! nft.commit(batch).await?;
//! # Ok(())
//! # }
//! ```
//!
//! What to know:
//! - A key or value is built part by part ([`Key`]); in registers a part of up to four bytes takes one [`Reg`](expr::Reg).
//! - The pieces of [`expr`] (`match_saddr`, `match_ct_state`, …) use register 0.
//! - What a map's element gives is changed by deleting it and adding it again **in one batch**.
//! - Order in a batch matters: a chain before the verdicts that name it; on the way back the verdicts first. Within one batch
//!   everything that refers to a chain may be deleted before the chain.
//! - Ranges in an interval set must not overlap: merge them first (`ipnet::Ipv4Net::aggregate`).
//! - Every user of a machine sees every table: name yours after the node. [`Nft::monitor`] tells when somebody else changed a
//!   table of yours (`nft flush ruleset`), so that it can be repaired at once.
//! - [`conntrack`] removes tracked connections by the same socket kind.

mod batch;
pub mod conntrack;
mod dump;
mod encode;
pub mod expr;
mod message;
mod monitor;
mod socket;
mod types;

pub use batch::Batch;
pub use dump::FoundRule;
pub use monitor::{Changed, Monitor};
pub use types::{Base, ChainKind, Data, Element, Family, Hook, Key, MapTo, Policy, Rule, Set, Table, Type, Verdict, priority};

use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::rt::TaskGroup;
use socket::Socket;

/// What can go wrong with netfilter.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There is no socket, or it failed.
    #[error("netfilter's netlink socket: {step}")]
    Socket { step: &'static str, source: io::Error },
    /// The kernel refused an operation; nothing of the batch was done.
    #[error("{operation}: {}{}{}", .errno.desc(), .reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
        if *.more > 0 { format!(", and {} more errors", .more) } else { String::new() })]
    Refused {
        operation: String,
        errno: Errno,
        /// The kernel's own words, where it has some.
        reason: Option<String>,
        /// How many more operations of the batch it refused.
        more: usize,
    },
    /// The kernel's tables changed again and again while they were read: try again.
    #[error("{operation}: the tables changed while they were read")]
    Interrupted { operation: String },
    /// The blocking pool is going down.
    #[error("the work was not run: {0}")]
    Gone(#[from] tokio::task::JoinError),
}

impl NftError {
    /// The message with its cause.
    pub fn report(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}"));
        format!("{self}{}", cause.as_deref().unwrap_or(""))
    }

    /// Whether the kernel has no nf_tables, or lets nobody use them here.
    pub fn is_unsupported(&self) -> bool {
        let errno = match self {
            Self::Socket { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Refused { errno, .. } => Some(*errno),
            Self::Interrupted { .. } | Self::Gone(_) => None,
        };
        matches!(errno, Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL))
    }

    /// Whether what was named does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::ENOENT, .. })
    }
}

/// A way to the kernel's nf_tables, in the network namespace of the thread that opened it. Clones share it.
#[derive(Clone)]
pub struct Nft {
    socket: Arc<Mutex<Socket>>,
    port: u32,
}

impl Nft {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NftError::Socket`].
    pub fn open() -> Result<Self, NftError> {
        let socket = Socket::open()?;
        let port = socket.port();
        Ok(Self { socket: Arc::new(Mutex::new(socket)), port })
    }

    /// Carries out all operations of a batch, or none. An empty batch does nothing. When this is dropped the batch is carried
    /// out all the same.
    ///
    /// # Errors
    /// [`NftError::Refused`] with the operation; trying the same again helps only if it was about the state of the tables.
    pub async fn commit(&self, batch: Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.blocking(move |socket| socket.commit(batch)).await
    }

    /// Watches a table: [`Monitor::changed`] tells when anybody but this handle (and its clones) changed it. The monitor must be
    /// made in the same network namespace; it sees what happens from now on.
    ///
    /// # Errors
    /// [`NftError::Socket`].
    pub fn monitor(&self, table: &Table) -> Result<Monitor, NftError> {
        Monitor::open(table, self.port)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, NftError> + Send + 'static,
    ) -> Result<T, NftError> {
        let socket = Arc::clone(&self.socket);
        TaskGroup::blocking(move || work(&mut socket.lock())).await?
    }
}

#[cfg(test)]
mod tests;
