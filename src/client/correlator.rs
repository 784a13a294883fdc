//! Decides what becomes of an event: written, counted onto the one before, or dropped. Pure.
//!
//! It follows `client-go/tools/record.EventCorrelator`: more than ten different messages about one object, type and reason within
//! ten minutes are combined; an event that was seen is counted; a source that says more than 25 things about an object is slowed
//! to one in five minutes.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;

use crate::api::names;
use crate::rt::random;

/// Different messages within [`SIMILAR_INTERVAL`] before they are combined.
const SIMILAR_MAX: usize = 10;
const SIMILAR_INTERVAL: Duration = Duration::from_secs(600);
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_SECONDS: f64 = 300.0;
/// Objects, and events, that are remembered.
const MEMORY: usize = 4_096;

/// An event as it was reported.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) about: ObjectReference,
    pub(super) kind: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
}

/// What to do with a report.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Write a new Event of this name, with this message.
    Create { name: String, message: String },
    /// The Event `name`, first seen at `first`, happened `count` times.
    Count { name: String, message: String, count: i32, first: Timestamp },
    /// Said too often.
    Drop,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SubjectKey {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SimilarKey {
    subject: SubjectKey,
    kind: &'static str,
    reason: String,
}

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Seen {
    name: String,
    count: i32,
    first: Timestamp,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

/// What was said before.
#[derive(Default)]
pub(super) struct Correlator {
    similar: HashMap<SimilarKey, Similar>,
    seen: HashMap<(SimilarKey, Option<String>), Seen>,
    buckets: HashMap<SubjectKey, Bucket>,
}

impl Correlator {
    /// Decides about a report made at `now`.
    pub(super) fn judge(&mut self, report: &Report, now: Timestamp) -> Verdict {
        self.forget();
        let subject = subject(&report.about);
        let key = SimilarKey { subject: subject.clone(), kind: report.kind, reason: report.reason.clone() };
        let combined = self.is_one_of_many(&key, &report.message, now);
        let message =
            if combined { format!("(combined from similar events): {}", report.message) } else { report.message.clone() };
        let verdict = self.count((key, (!combined).then(|| report.message.clone())), &report.about, message, now);
        if self.spend(subject, now) { verdict } else { Verdict::Drop }
    }

    fn is_one_of_many(&mut self, key: &SimilarKey, message: &str, now: Timestamp) -> bool {
        let similar = self.similar.entry(key.clone()).or_insert_with(|| Similar { messages: HashSet::new(), last: now });
        if elapsed(similar.last, now) > SIMILAR_INTERVAL.as_secs_f64() {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(message.to_owned());
        let many = similar.messages.len() > SIMILAR_MAX;
        if many {
            similar.messages.remove(message);
        }
        many
    }

    fn count(&mut self, key: (SimilarKey, Option<String>), about: &ObjectReference, message: String, now: Timestamp) -> Verdict {
        if let Some(seen) = self.seen.get_mut(&key) {
            seen.count = seen.count.saturating_add(1);
            seen.last = now;
            return Verdict::Count { name: seen.name.clone(), message, count: seen.count, first: seen.first };
        }
        let name = event_name(about.name.as_deref().unwrap_or(""), now);
        self.seen.insert(key, Seen { name: name.clone(), count: 1, first: now, last: now });
        Verdict::Create { name, message }
    }

    fn spend(&mut self, subject: SubjectKey, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(subject).or_insert(Bucket { tokens: SPAM_BURST, last: now });
        bucket.tokens = (bucket.tokens + elapsed(bucket.last, now) / SPAM_REFILL_SECONDS).min(SPAM_BURST);
        bucket.last = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    fn forget(&mut self) {
        forget_oldest(&mut self.similar, |similar| similar.last);
        forget_oldest(&mut self.seen, |seen| seen.last);
        forget_oldest(&mut self.buckets, |bucket| bucket.last);
    }
}

/// The name of an event: that of what it is about and the time, or, where that is no name (too long), one by chance.
fn event_name(about: &str, now: Timestamp) -> String {
    let name = format!("{about}.{:x}", now.as_nanosecond());
    if names::dns1123_subdomain(&name).is_empty() { name } else { random::uid() }
}

fn elapsed(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// Keeps the newer half of a map that is full.
fn forget_oldest<K: Eq + Hash, V>(map: &mut HashMap<K, V>, last: impl Fn(&V) -> Timestamp) {
    if map.len() >= MEMORY {
        let mut times: Vec<Timestamp> = map.values().map(&last).collect();
        let (_, middle, _) = times.select_nth_unstable(MEMORY / 2);
        let middle = *middle;
        map.retain(|_, value| last(value) > middle);
    }
}

fn subject(about: &ObjectReference) -> SubjectKey {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    SubjectKey {
        kind: text(&about.kind),
        namespace: text(&about.namespace),
        name: text(&about.name),
        uid: text(&about.uid),
        field_path: text(&about.field_path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(message: &str) -> Report {
        let about = ObjectReference { name: Some("web".into()), uid: Some("u".into()), ..ObjectReference::default() };
        Report { about, kind: "Normal", reason: "Pulled".into(), message: message.into() }
    }

    #[test]
    fn names_are_names() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(event_name("web", now), "web.18fae27693b40000");
        let long = event_name(&"a".repeat(253), now);
        assert_eq!((long.len(), names::dns1123_subdomain(&long)), (36, Vec::new()));
    }

    #[test]
    fn repeats_are_counted() {
        let (mut correlator, start) = (Correlator::default(), Timestamp::from_second(1).unwrap());
        let Verdict::Create { name, .. } = correlator.judge(&report("a"), start) else { panic!("new") };
        assert_eq!(name, "web.3b9aca00");
        let count = correlator.judge(&report("a"), start);
        assert_eq!(count, Verdict::Count { name, message: "a".into(), count: 2, first: start });
    }

    #[test]
    fn many_messages_combine_and_spam_is_dropped() {
        let (mut correlator, start) = (Correlator::default(), Timestamp::from_second(1).unwrap());
        let verdicts: Vec<Verdict> = (0..26).map(|n| correlator.judge(&report(&n.to_string()), start)).collect();
        assert!(verdicts[..10].iter().all(|verdict| matches!(verdict, Verdict::Create { .. })));
        assert!(matches!(&verdicts[10], Verdict::Create { message, .. } if message == "(combined from similar events): 10"));
        assert!(matches!(&verdicts[11], Verdict::Count { count: 2, .. }));
        assert_eq!(verdicts[25], Verdict::Drop);
        let later = start + jiff::SignedDuration::from_secs(301);
        assert_ne!(correlator.judge(&report("1"), later), Verdict::Drop);
    }
}
