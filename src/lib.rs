//! `orch` is Kubernetes as one executable.
//!
//! # Bird's eye
//!
//! Two halves meet only at the Kubernetes API. The **serving half** ([`server`] over [`auth`], [`admission`], [`registry`]
//! and [`store`]) answers requests; the **reconciling half** ([`controllers`], [`scheduler`], [`network`], [`agent`]) does
//! everything else, and all of it through [`client`]. The agent writes status through the same API that everybody uses, and so
//! the loop closes. Nothing reads or writes the store behind the API's back.
//!
//! # Invariants
//!
//! - `resourceVersion` is the store revision: one total order, unique per write, strictly growing, across restarts and leaders.
//! - A write is acknowledged only after it is on disk on a majority of the servers (Lease renewals and Events excepted).
//! - A watch from revision r yields every later event exactly once and in order, or 410 Gone. It never silently skips.
//! - A LIST is one consistent snapshot; so are all the pages of one `continue` chain.
//! - The API is the only way in, for our own controllers too: the loopback transport runs authn, authz and admission.
//! - Containers outlive `orch`: stopping, upgrading or killing it never stops a pod.
//! - The agent goes on with what it last knew when the API is away, across its own restart too.
//! - A background task that ends, ends the process; there are no orphan tasks. Every queue, buffer, body and watch set has a limit.
//! - Adding a kind, controller, admission plugin, scheduler filter or command is one file and one line in the table beside it.
//!
//! Who may import whom is data in `tests/tidy.rs`.

pub mod rt;

pub mod api;
pub mod kinds;

pub mod admission;
pub mod auth;
pub mod registry;
pub mod server;
pub mod store;

pub mod agent;
pub mod client;
pub mod controllers;
pub mod cri;
pub mod network;
pub mod scheduler;

pub mod cmd;
pub mod http;
pub mod pki;
