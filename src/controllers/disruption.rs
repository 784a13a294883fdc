//! How many nodes may lose their pods, and how fast: the zones of upstream's `controller/nodelifecycle`. Where all nodes of all zones
//! seem lost, none does; where most of a zone is, only large zones go on, slowly.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

/// Time between two nodes of a zone that lose their pods.
const PACE: Duration = Duration::from_secs(10);
/// The same in a large zone most of whose nodes are lost.
const SLOW_PACE: Duration = Duration::from_secs(100);
/// Nodes above which a zone is large.
const LARGE: usize = 50;
/// The part of a zone's nodes, in percent, that are lost when most are.
const MOST_PERCENT: usize = 55;
/// How long to wait before a look at a zone where none may go now.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// How a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Zone {
    ready: usize,
    lost: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Normal,
    Partial,
    Full,
}

impl Zone {
    fn state(self) -> State {
        match (self.ready, self.lost) {
            (0, 1..) => State::Full,
            (ready, lost) if lost > 2 && lost * 100 >= (ready + lost) * MOST_PERCENT => State::Partial,
            _ => State::Normal,
        }
    }

    /// Time between two nodes; `None`: not one.
    fn pace(self) -> Option<Duration> {
        match self.state() {
            State::Normal | State::Full => Some(PACE),
            State::Partial => (self.ready + self.lost > LARGE).then_some(SLOW_PACE),
        }
    }
}

/// What is known of all zones.
#[derive(Debug, Default)]
pub(super) struct Disruption {
    zones: BTreeMap<String, Zone>,
    /// When the next node of a zone may go.
    next: BTreeMap<String, Instant>,
    /// No node goes before: all seemed lost until lately.
    calm_until: Option<Instant>,
    is_total: bool,
}

fn zone_of(node: &Node) -> String {
    let labels = node.metadata.labels.as_ref();
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).map_or("", String::as_str);
    format!("{}:{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

/// `None`: a node that was just made has said nothing yet.
fn is_ready(node: &Node) -> Option<bool> {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == "Ready").map(|ready| ready.status == "True")
}

impl Disruption {
    /// Looks at all nodes.
    pub(super) fn observe<'a>(&mut self, nodes: impl Iterator<Item = &'a Node>, grace: Duration, now: Instant) {
        self.zones.clear();
        for node in nodes {
            let zone = self.zones.entry(zone_of(node)).or_default();
            match is_ready(node) {
                Some(true) => zone.ready += 1,
                Some(false) => zone.lost += 1,
                None => {}
            }
        }
        let was_total = self.is_total;
        self.is_total = !self.zones.is_empty() && self.zones.values().all(|zone| zone.state() == State::Full);
        let lost: usize = self.zones.values().map(|zone| zone.lost).sum();
        if self.is_total && !was_total && lost > 1 {
            tracing::warn!(lost, "all nodes seem to be lost: no pod is evicted");
        }
        if was_total && !self.is_total {
            // The nodes that are still silent get the time that they would have had.
            self.calm_until = Some(now + grace);
        }
        self.next.retain(|zone, _| self.zones.contains_key(zone));
    }

    /// Whether every node of every zone seems lost.
    pub(super) fn is_total(&self) -> bool {
        self.is_total
    }

    /// Takes the turn of a lost node; if it has to wait, how long until it may ask again.
    pub(super) fn take(&mut self, node: &Node, now: Instant) -> Option<Duration> {
        if let Some(until) = self.calm_until.filter(|until| *until > now) {
            return Some(until.duration_since(now));
        }
        let name = zone_of(node);
        let Some(pace) = self.zones.get(&name).copied().unwrap_or_default().pace() else { return Some(LOOK_AGAIN) };
        match self.next.get(&name).filter(|next| **next > now) {
            Some(next) => Some(next.duration_since(now)),
            None => {
                self.next.insert(name, now + pace);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rt::clock;

    fn node(number: usize, zone: &str, ready: bool) -> Node {
        let status = if ready { "True" } else { "Unknown" };
        serde_json::from_value(
            json!({"metadata": {"name": format!("n{number}"), "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": status}]}}),
        )
        .unwrap()
    }

    fn nodes(zone: &str, ready: usize, lost: usize) -> Vec<Node> {
        (0..ready + lost).map(|number| node(number, zone, number < ready)).collect()
    }

    const GRACE: Duration = Duration::from_secs(40);

    #[test]
    fn states_of_zones() {
        for (ready, lost, state, pace) in [
            (0, 0, State::Normal, Some(PACE)),
            (0, 1, State::Full, Some(PACE)),
            (1, 1, State::Normal, Some(PACE)),
            (1, 2, State::Normal, Some(PACE)),
            (2, 3, State::Partial, None),
            (5, 5, State::Normal, Some(PACE)),
            (20, 40, State::Partial, Some(SLOW_PACE)),
        ] {
            let zone = Zone { ready, lost };
            assert_eq!((zone.state(), zone.pace()), (state, pace), "{ready} ready, {lost} lost");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_at_a_time() {
        let (mut disruption, now) = (Disruption::default(), clock::instant());
        let all = nodes("a", 8, 2);
        disruption.observe(all.iter(), GRACE, now);
        assert_eq!(disruption.take(&all[8], now), None);
        assert_eq!(disruption.take(&all[9], now), Some(PACE));
        assert_eq!(disruption.take(&all[9], now + PACE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn all_lost_is_nobody_lost() {
        let (mut disruption, now) = (Disruption::default(), clock::instant());
        let (lost, other) = (nodes("a", 0, 2), nodes("b", 0, 1));
        disruption.observe(lost.iter().chain(&other), GRACE, now);
        assert!(disruption.is_total());
        // One is back: the others have their grace again.
        let back = nodes("b", 1, 0);
        disruption.observe(lost.iter().chain(&back), GRACE, now);
        assert!(!disruption.is_total());
        assert_eq!(disruption.take(&lost[0], now), Some(GRACE));
        assert_eq!(disruption.take(&lost[0], now + GRACE), None);
    }
}
