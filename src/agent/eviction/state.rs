//! Which thresholds are met, since when, and what follows from it: conditions of the node, and what pods are to be evicted for. Pure:
//! time and figures are handed in (upstream `managerImpl.synchronize`, its first half).

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use super::signal::{Pressure, Signal};
use super::threshold::{Settings, Threshold};
use crate::api::quantity::Quantity;

/// What there is of a resource now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    pub available: Quantity,
    pub capacity: i64,
}

/// What was read; a signal that the machine does not have is missing.
pub type Observations = BTreeMap<Signal, Observed>;

/// What follows from a look at the node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Finding {
    /// The node's conditions: observed now, or within the transition period.
    pub pressures: BTreeSet<Pressure>,
    /// The thresholds that pods are evicted for, the most urgent first.
    pub due: Vec<Threshold>,
}

/// What is remembered between two looks; thresholds by their place in the settings.
#[derive(Debug, Default)]
pub struct State {
    /// Met with their grace over, and not yet won back by their minimum.
    due: BTreeSet<usize>,
    first_met: BTreeMap<usize, Instant>,
    last_pressed: BTreeMap<Pressure, Instant>,
}

impl State {
    /// Takes in what was read.
    pub fn observe(&mut self, settings: &Settings, observations: &Observations, now: Instant) -> Finding {
        let all = settings.thresholds.iter().enumerate();
        let is_met = |at: usize, threshold: &Threshold| is_met(threshold, observations, self.due.contains(&at));
        let met: Vec<(usize, Threshold)> =
            all.filter(|(at, threshold)| is_met(*at, threshold)).map(|(at, one)| (at, *one)).collect();
        self.first_met = met.iter().map(|(at, _)| (*at, self.first_met.get(at).copied().unwrap_or(now))).collect();
        for (_, threshold) in &met {
            self.last_pressed.insert(threshold.signal.pressure(), now);
        }
        self.last_pressed.retain(|_, at| *at == now || now.saturating_duration_since(*at) < settings.transition_period);
        let is_due = |at: &usize, threshold: &Threshold| {
            let since = self.first_met.get(at).copied().unwrap_or(now);
            now.saturating_duration_since(since) >= threshold.grace.unwrap_or_default()
        };
        let mut due: Vec<(usize, Threshold)> = met.into_iter().filter(|(at, threshold)| is_due(at, threshold)).collect();
        self.due = due.iter().map(|(at, _)| *at).collect();
        // Memory first: nothing else ends processes so soon.
        due.sort_by_key(|(_, threshold)| threshold.signal.pressure() != Pressure::Memory);
        Finding { pressures: self.last_pressed.keys().copied().collect(), due: due.into_iter().map(|(_, one)| one).collect() }
    }
}

/// Whether a signal is below its threshold; with `until_reclaimed`, below what ends the shortage.
pub fn is_met(threshold: &Threshold, observations: &Observations, until_reclaimed: bool) -> bool {
    let Some(observed) = observations.get(&threshold.signal) else { return false };
    let level = threshold.level.of(observed.capacity);
    let reclaim = threshold.min_reclaim.filter(|_| until_reclaimed).map(|reclaim| reclaim.of(observed.capacity));
    level + reclaim.unwrap_or(Quantity::ZERO) > observed.available
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::threshold::{Texts, parse};
    use super::*;
    use crate::api::quantity::Format;
    use crate::rt::clock;

    fn settings(hard: &str, soft: &str, grace: &str, reclaim: &str) -> Settings {
        let texts = Texts { hard, soft, soft_grace_period: grace, minimum_reclaim: reclaim };
        Settings { thresholds: parse(texts).unwrap(), transition_period: Duration::from_secs(60), ..Settings::default() }
    }

    fn read(signal: Signal, mib: i64) -> Observations {
        let available = Quantity::new(mib << 20, Format::BinarySi);
        [(signal, Observed { available, capacity: 1_000 << 20 })].into()
    }

    /// Looks at these times (s) at so much available (Mi), and says: pressures, thresholds due.
    fn check(settings: &Settings, signal: Signal, looks: &[(u64, i64, usize, usize)]) {
        let (start, mut state) = (clock::instant(), State::default());
        for (second, mib, pressures, due) in looks {
            let finding = state.observe(settings, &read(signal, *mib), start + Duration::from_secs(*second));
            assert_eq!((finding.pressures.len(), finding.due.len()), (*pressures, *due), "{second}s, {mib}Mi: {finding:?}");
        }
    }

    #[test]
    fn hard_thresholds_are_due_at_once_and_conditions_stay_for_a_while() {
        let settings = settings("memory.available<100Mi", "", "", "");
        let looks = [(0, 100, 0, 0), (10, 99, 1, 1), (20, 200, 1, 0), (69, 200, 1, 0), (70, 200, 0, 0)];
        check(&settings, Signal::MemoryAvailable, &looks);
    }

    #[test]
    fn soft_thresholds_wait_for_their_grace_without_a_gap() {
        let settings = settings("", "memory.available<100Mi", "memory.available=30s", "");
        let looks = [(0, 50, 1, 0), (20, 50, 1, 0), (25, 150, 1, 0), (30, 50, 1, 0), (59, 50, 1, 0), (60, 50, 1, 1)];
        check(&settings, Signal::MemoryAvailable, &looks);
    }

    #[test]
    fn a_shortage_ends_when_enough_was_won_back() {
        let settings = settings("nodefs.available<10%", "", "", "nodefs.available=50Mi");
        let looks = [(0, 120, 0, 0), (10, 99, 1, 1), (20, 149, 1, 1), (30, 150, 1, 0), (40, 120, 1, 0)];
        check(&settings, Signal::NodefsAvailable, &looks);
    }

    #[test]
    fn memory_comes_first_and_what_is_not_known_is_not_met() {
        let settings = settings("nodefs.available<10%,pid.available<10,memory.available<10%", "", "", "");
        let mut all = read(Signal::NodefsAvailable, 1);
        all.extend(read(Signal::MemoryAvailable, 1));
        let finding = State::default().observe(&settings, &all, clock::instant());
        let signals: Vec<Signal> = finding.due.iter().map(|threshold| threshold.signal).collect();
        assert_eq!(signals, [Signal::MemoryAvailable, Signal::NodefsAvailable]);
        assert_eq!(finding.pressures, [Pressure::Memory, Pressure::Disk].into());
    }
}
