//! One question from its bytes to its answer: the user's hosts, then the cluster, then the cache, and only then the network.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::time::Instant;

use super::forward::{Forwarder, Question};
use super::index::Index;
use super::message::{HEADER, Query, Unusable, rcode, rtype};
use super::name::Name;
use super::reply::{Owner, Reply, Section, refuse, refuse_version};
use super::reverse::address_of;
use super::settings::Hosts;
use super::zone::{Outcome, Scratch, TTL, Zone};
use crate::rt::clock;

/// What is to be done with a message.
pub(super) enum Step {
    /// The answer is in the buffer; the type that was asked for.
    Reply(u16),
    /// Nothing is said.
    Silence,
    /// The answer needs the network: [`Resolver::finish`].
    Ask(Box<Job>),
}

/// A question that is not answered yet.
pub(super) struct Job {
    message: Vec<u8>,
    limit: Option<usize>,
    question: Question,
    /// Whether the question is about a name that aliases lead to.
    is_chased: bool,
}

/// Answers questions. One an agent.
pub(super) struct Resolver {
    pub(super) zone: Zone,
    pub(super) index: RwLock<Index>,
    pub(super) hosts: ArcSwap<Hosts>,
    pub(super) forwarder: Arc<Forwarder>,
}

impl Resolver {
    /// The index as it is now, for a batch of questions. Must not be held across an await.
    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read()
    }

    /// Answers from what is known. `limit` is the transport's; without, the client's UDP size counts.
    pub(super) fn start(
        &self,
        index: &Index,
        message: &[u8],
        limit: Option<usize>,
        now: Instant,
        scratch: &mut Scratch,
        out: &mut Vec<u8>,
    ) -> Step {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Unusable::Silence) => return Step::Silence,
            Err(Unusable::Code(code)) => {
                refuse(message, code, out);
                return Step::Reply(0);
            }
        };
        let room = limit.unwrap_or_else(|| query.udp_limit());
        if query.is_of_another_version() {
            Reply::begin(&query, room, out).finish(rcode::NO_ERROR, false);
            refuse_version(out);
            return Step::Reply(query.qtype);
        }
        let mut reply = Reply::begin(&query, room, out);
        if self.listed(&query, &mut reply) {
            reply.finish(rcode::NO_ERROR, true);
            return Step::Reply(query.qtype);
        }
        let chased = match self.zone.answer(index, &query, &mut reply, scratch) {
            Outcome::Done(code) => {
                reply.finish(code, code != rcode::SERV_FAIL);
                return Step::Reply(query.qtype);
            }
            Outcome::Chase(name) => Some(name),
            Outcome::Foreign => None,
        };
        let is_chased = chased.is_some();
        let question = Question {
            name: chased.map_or_else(|| query.name.clone(), |name| *name),
            qtype: query.qtype,
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.checking_disabled(),
        };
        if !is_chased && let Some(stored) = self.forwarder.cached(&question.key(), now) {
            stored.write(&query, now, room, out);
            return Step::Reply(query.qtype);
        }
        Step::Ask(Box::new(Job { message: message.to_vec(), limit, question, is_chased }))
    }

    /// Answers with what upstreams say. Ends within five seconds.
    pub(super) async fn finish(&self, job: Box<Job>, scratch: &mut Scratch, out: &mut Vec<u8>) -> Step {
        let found = self.forwarder.resolve(job.question).await;
        let Ok(query) = Query::parse(&job.message) else { return Step::Silence };
        let room = job.limit.unwrap_or_else(|| query.udp_limit());
        let now = clock::instant();
        let code = found.as_ref().map_or(rcode::SERV_FAIL, |stored| stored.rcode());
        match found {
            Some(stored) if !job.is_chased => stored.write(&query, now, room, out),
            found => {
                let mut reply = Reply::begin(&query, room, out);
                if job.is_chased {
                    let _leads_there_again = self.zone.answer(&self.index(), &query, &mut reply, scratch);
                }
                if let Some(stored) = found {
                    stored.copy_answers(now, &mut reply);
                }
                reply.finish(code, false);
            }
        }
        Step::Reply(query.qtype)
    }

    /// An answer that there is no room to ask for.
    pub(super) fn overloaded(job: &Job, out: &mut Vec<u8>) {
        if let Ok(query) = Query::parse(&job.message) {
            Reply::begin(&query, super::message::UDP_PLAIN, out).finish(rcode::SERV_FAIL, false);
        }
    }

    /// Answers from the user's list. A name that is listed has no other records.
    fn listed(&self, query: &Query<'_>, reply: &mut Reply<'_>) -> bool {
        let hosts = self.hosts.load();
        if hosts.is_empty() {
            return false;
        }
        if let Some(addresses) = hosts.addresses(&query.name) {
            let of_type =
                |ip: &&std::net::IpAddr| ip.is_ipv4() && query.qtype == rtype::A || ip.is_ipv6() && query.qtype == rtype::AAAA;
            for ip in addresses.iter().filter(of_type) {
                reply.address(Section::Answer, Owner::At(HEADER), TTL, *ip);
            }
            return true;
        }
        let names: &[Name] = address_of(&query.name).map_or(&[], |ip| hosts.names(ip));
        for name in names.iter().filter(|_| query.qtype == rtype::PTR) {
            reply.record(Section::Answer, Owner::At(HEADER), rtype::PTR, TTL, &[name.wire()]);
        }
        !names.is_empty()
    }
}
