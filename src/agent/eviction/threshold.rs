//! Thresholds: below what an eviction begins, how long it may last before that, and how much is to be won back. The forms and words
//! are those of the kubelet's flags (upstream `eviction.ParseThresholdConfig`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::signal::Signal;
use crate::api::quantity::{Format, Quantity};

/// Upstream's margins, but for disks: those of k3s. A machine that does more than run pods may well have nine tenths of its disk in use.
pub const DEFAULT_EVICTION_HARD: &str =
    "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%";

/// An amount, or a part of what there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Level {
    Amount(Quantity),
    /// A fraction of the capacity.
    Fraction(f64),
}

impl Level {
    /// As an amount of that capacity.
    pub fn of(self, capacity: i64) -> Quantity {
        match self {
            Self::Amount(amount) => amount,
            Self::Fraction(fraction) => Quantity::new((capacity as f64 * fraction) as i64, Format::BinarySi),
        }
    }

    /// Reads `100Mi` or `10%`.
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse::<f64>() {
                Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::Fraction(percent / 100.0)),
                _ => Err(format!("{text:?}: a percentage is between 0% and 100%")),
            },
            None => Quantity::parse(text).map(Self::Amount).map_err(|error| format!("{text:?}: {error}")),
        }
    }
}

/// One threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub level: Level,
    /// How long the signal must have been below it; a hard threshold has none.
    pub grace: Option<Duration>,
    /// How much above the threshold ends the shortage; upstream's `minimum reclaim`.
    pub min_reclaim: Option<Level>,
}

impl Threshold {
    /// Whether pods are ended at once, with no regard to their own grace period.
    pub fn is_hard(&self) -> bool {
        self.grace.is_none()
    }
}

/// The texts of the kubelet's flags.
#[derive(Debug, Clone, Copy, Default)]
pub struct Texts<'a> {
    /// `memory.available<100Mi,nodefs.available<10%`
    pub hard: &'a str,
    pub soft: &'a str,
    /// `memory.available=1m30s`
    pub soft_grace_period: &'a str,
    /// `memory.available=500Mi`
    pub minimum_reclaim: &'a str,
}

/// When and how pods are evicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub thresholds: Vec<Threshold>,
    /// The longest grace period of a pod that a soft threshold evicts.
    pub max_pod_grace: Duration,
    /// How long a condition of the node stays after it was last observed.
    pub transition_period: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { thresholds: Vec::new(), max_pod_grace: Duration::ZERO, transition_period: Duration::from_secs(300) }
    }
}

impl Settings {
    /// The amount of a hard threshold, of that capacity; 0 if there is none.
    pub fn hard_amount(&self, signal: Signal, capacity: i64) -> i64 {
        let found = self.thresholds.iter().find(|threshold| threshold.is_hard() && threshold.signal == signal);
        found.map_or(0, |threshold| threshold.level.of(capacity).value())
    }
}

/// Reads the thresholds of all flags.
///
/// # Errors
/// The flag that is wrong (without its dashes), and why.
pub fn parse(texts: Texts<'_>) -> Result<Vec<Threshold>, (&'static str, String)> {
    let flag = |name: &'static str| move |why: String| (name, why);
    let mut thresholds = statements(texts.hard).map_err(flag("eviction-hard"))?;
    let graces = pairs(texts.soft_grace_period, duration).map_err(flag("eviction-soft-grace-period"))?;
    let reclaims = pairs(texts.minimum_reclaim, reclaim).map_err(flag("eviction-minimum-reclaim"))?;
    for mut soft in statements(texts.soft).map_err(flag("eviction-soft"))? {
        let grace = graces.get(&soft.signal).copied();
        let missing = || format!("grace period must be specified for the soft eviction threshold {}", soft.signal.name());
        soft.grace = Some(grace.ok_or_else(missing).map_err(flag("eviction-soft"))?);
        thresholds.push(soft);
    }
    for threshold in &mut thresholds {
        threshold.min_reclaim = reclaims.get(&threshold.signal).copied();
    }
    Ok(thresholds)
}

/// Adds what holds for the memory that is the pods' alone, where it is less than all: as for the whole node (upstream
/// `addAllocatableThresholds`).
pub fn with_allocatable(mut thresholds: Vec<Threshold>) -> Vec<Threshold> {
    let of = |thresholds: &[Threshold], signal| {
        thresholds.iter().find(|threshold| threshold.signal == signal && threshold.is_hard()).copied()
    };
    let signal = Signal::AllocatableMemoryAvailable;
    if let (Some(memory), None) = (of(&thresholds, Signal::MemoryAvailable), of(&thresholds, signal)) {
        thresholds.push(Threshold { signal, ..memory });
    }
    thresholds
}

/// Reads `SIGNAL<LEVEL,…`. What is 0% or 100% is none, as upstream.
fn statements(text: &str) -> Result<Vec<Threshold>, String> {
    let mut thresholds: Vec<Threshold> = Vec::new();
    for item in items(text) {
        let (name, value) = item.split_once('<').ok_or_else(|| format!("{item:?} is not of the form SIGNAL<AMOUNT"))?;
        let signal = Signal::parse(name.trim())?;
        if thresholds.iter().any(|known| known.signal == signal) {
            return Err(format!("{item:?}: {} is given twice", signal.name()));
        }
        let level = Level::parse(value.trim()).map_err(|why| format!("{name}: {why}"))?;
        match level {
            Level::Fraction(fraction) if fraction <= 0.0 || fraction >= 1.0 => continue,
            Level::Amount(amount) if amount.is_zero() || amount.is_negative() => {
                return Err(format!("eviction threshold {name} must be positive: {value}"));
            }
            _ => thresholds.push(Threshold { signal, level, grace: None, min_reclaim: None }),
        }
    }
    Ok(thresholds)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Reads `SIGNAL=VALUE,…`.
fn pairs<T>(text: &str, read: fn(&str) -> Result<T, String>) -> Result<BTreeMap<Signal, T>, String> {
    let pair = |item: &str| {
        let (name, value) = item.split_once('=').ok_or_else(|| format!("{item:?} is not of the form SIGNAL=VALUE"))?;
        let value = read(value.trim()).map_err(|why| format!("{name}: {why}"))?;
        Ok((Signal::parse(name.trim())?, value))
    };
    items(text).map(pair).collect()
}

fn reclaim(text: &str) -> Result<Level, String> {
    match Level::parse(text)? {
        Level::Amount(amount) if amount.is_negative() => Err(format!("negative eviction minimum reclaim specified: {text}")),
        level => Ok(level),
    }
}

/// Reads the durations of Kubernetes' flags: `1m30s`, `500ms`, `0s`.
///
/// # Errors
/// What the form is.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not of the form 40s, 1m30s or 2h");
    let (mut total, mut rest) = (Duration::ZERO, text);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).filter(|digits| *digits > 0).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|letter: char| letter.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let count: u64 = number.parse().map_err(|_| wrong())?;
        let part = match unit {
            "h" => count.checked_mul(3_600).map(Duration::from_secs),
            "m" => count.checked_mul(60).map(Duration::from_secs),
            "s" => Some(Duration::from_secs(count)),
            "ms" => Some(Duration::from_millis(count)),
            _ => None,
        };
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = tail;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(hard: &str, soft: &str, grace: &str, reclaim: &str) -> Result<Vec<Threshold>, (&'static str, String)> {
        parse(Texts { hard, soft, soft_grace_period: grace, minimum_reclaim: reclaim })
    }

    #[test]
    fn flags_parse() {
        let all = read(
            "memory.available<100Mi,nodefs.available<10%",
            "memory.available<1Gi",
            "memory.available=1m30s",
            "nodefs.available=500Mi,memory.available=0Mi",
        )
        .unwrap();
        assert_eq!((all.len(), with_allocatable(all.clone()).len()), (3, 4));
        assert_eq!(all[0].level.of(1 << 40).to_string(), "100Mi");
        assert_eq!(all[1].level.of(10 << 20).to_string(), "1Mi");
        assert_eq!(all[1].min_reclaim.unwrap().of(0).to_string(), "500Mi");
        assert_eq!((all[2].grace, all[0].is_hard(), all[2].is_hard()), (Some(Duration::from_secs(90)), true, false));
        assert_eq!(read(DEFAULT_EVICTION_HARD, "", "", "").unwrap().len(), 5);
        assert_eq!(read("", "", "", ""), Ok(Vec::new()));
        assert_eq!(read("imagefs.available<0%,nodefs.available<100%", "", "", ""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let table = [
            (read("memory.available", "", "", ""), "eviction-hard", "\"memory.available\" is not of the form SIGNAL<AMOUNT"),
            (
                read("memory.free<1Mi", "", "", ""),
                "eviction-hard",
                "unrecognized eviction signal memory.free: one of memory.available, allocatableMemory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree, pid.available",
            ),
            (
                read("memory.available<-1Mi", "", "", ""),
                "eviction-hard",
                "eviction threshold memory.available must be positive: -1Mi",
            ),
            (
                read("nodefs.available<101%", "", "", ""),
                "eviction-hard",
                "nodefs.available: \"101%\": a percentage is between 0% and 100%",
            ),
            (
                read("pid.available<1,pid.available<2", "", "", ""),
                "eviction-hard",
                "\"pid.available<2\": pid.available is given twice",
            ),
            (
                read("", "memory.available<1Gi", "", ""),
                "eviction-soft",
                "grace period must be specified for the soft eviction threshold memory.available",
            ),
            (
                read("", "", "memory.available=1", ""),
                "eviction-soft-grace-period",
                "memory.available: \"1\" is not of the form 40s, 1m30s or 2h",
            ),
            (
                read("", "", "", "memory.available=-1"),
                "eviction-minimum-reclaim",
                "memory.available: negative eviction minimum reclaim specified: -1",
            ),
        ];
        for (result, flag, why) in table {
            assert_eq!(result, Err((flag, why.to_owned())));
        }
    }

    #[test]
    fn durations_are_those_of_kubernetes() {
        let table = [
            ("1m30s", Some(90_000)),
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("2h", Some(7_200_000)),
            ("", None),
            ("5", None),
            ("m", None),
            ("5d", None),
        ];
        for (text, ms) in table {
            assert_eq!(duration(text).ok().map(|time| time.as_millis()), ms, "{text}");
        }
    }
}
