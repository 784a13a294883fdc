//! What of the machine is kept from pods: for the system, for `orch` itself, and as the margin below which pods are evicted.
//! A node's `allocatable` is its capacity less all three (upstream `pkg/kubelet/cm/node_container_manager`).

use std::collections::BTreeMap;

use super::facts::Capacity;
use crate::api::quantity::Quantity;

/// Upstream's margins.
pub const DEFAULT_EVICTION_HARD: &str = "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%";

const SIGNALS: [&str; 6] =
    ["memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree", "pid.available"];

/// An amount that is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub ephemeral_storage_bytes: i64,
    pub pids: i64,
}

impl Amounts {
    /// Reads `cpu=500m,memory=1Gi,ephemeral-storage=1Gi,pid=1000`.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut amounts = Self::default();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (name, amount) = item.split_once('=').ok_or_else(|| format!("{item:?} is not of the form NAME=AMOUNT"))?;
            let amount = Quantity::parse(amount).map_err(|error| format!("{item:?}: {error}"))?;
            if amount.is_negative() {
                return Err(format!("{item:?}: must not be negative"));
            }
            match name {
                "cpu" => amounts.cpu_milli = amount.milli_value(),
                "memory" => amounts.memory_bytes = amount.value(),
                "ephemeral-storage" => amounts.ephemeral_storage_bytes = amount.value(),
                "pid" => amounts.pids = amount.value(),
                _ => return Err(format!("cannot reserve {name:?} resource: only cpu, memory, ephemeral-storage and pid")),
            }
        }
        Ok(amounts)
    }
}

/// Below what an eviction begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    Amount(i64),
    /// A fraction of the capacity.
    Fraction(f64),
}

impl Threshold {
    /// As an amount of that capacity.
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Fraction(fraction) => (capacity as f64 * fraction) as i64,
        }
    }
}

/// The thresholds by signal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvictionThresholds(BTreeMap<String, Threshold>);

impl EvictionThresholds {
    /// Reads `memory.available<100Mi,nodefs.available<10%`; an empty text has none.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut thresholds = BTreeMap::new();
        for item in text.split(',').filter(|item| !item.is_empty()) {
            let (signal, value) = item.split_once('<').ok_or_else(|| format!("{item:?} is not of the form SIGNAL<AMOUNT"))?;
            if !SIGNALS.contains(&signal) {
                return Err(format!("unsupported eviction signal {signal:?}: one of {}", SIGNALS.join(", ")));
            }
            let threshold = match value.strip_suffix('%') {
                Some(percent) => match percent.parse::<f64>() {
                    Ok(percent) if (0.0..=100.0).contains(&percent) => Threshold::Fraction(percent / 100.0),
                    _ => return Err(format!("{item:?}: a percentage is between 0% and 100%")),
                },
                None => Threshold::Amount(Quantity::parse(value).map_err(|error| format!("{item:?}: {error}"))?.value()),
            };
            thresholds.insert(signal.to_owned(), threshold);
        }
        Ok(Self(thresholds))
    }

    /// The threshold of a signal, as an amount of that capacity.
    pub fn amount(&self, signal: &str, capacity: i64) -> i64 {
        self.0.get(signal).map_or(0, |threshold| threshold.of(capacity))
    }
}

/// All that is kept from pods.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reserve {
    pub system: Amounts,
    pub kube: Amounts,
    pub eviction_hard: EvictionThresholds,
}

impl Reserve {
    /// What pods may have of a machine.
    pub fn allocatable(&self, capacity: &Capacity) -> Capacity {
        let left = |all: i64, of: fn(&Amounts) -> i64, margin: i64| {
            (all.saturating_sub(of(&self.system)).saturating_sub(of(&self.kube)).saturating_sub(margin)).max(0)
        };
        let huge: i64 = capacity.huge_pages.iter().map(|(_, bytes)| *bytes).sum();
        let memory = capacity.memory_bytes.saturating_sub(huge);
        let memory_margin = self.eviction_hard.amount("memory.available", capacity.memory_bytes);
        let disk_margin = self.eviction_hard.amount("nodefs.available", capacity.ephemeral_storage_bytes);
        Capacity {
            cpu_milli: left(capacity.cpu_milli, |amounts| amounts.cpu_milli, 0),
            memory_bytes: left(memory, |amounts| amounts.memory_bytes, memory_margin),
            ephemeral_storage_bytes: left(
                capacity.ephemeral_storage_bytes,
                |amounts| amounts.ephemeral_storage_bytes,
                disk_margin,
            ),
            ..capacity.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_parse() {
        let amounts = Amounts::parse("cpu=500m,memory=1Gi").unwrap();
        assert_eq!((amounts.cpu_milli, amounts.memory_bytes, amounts.pids), (500, 1 << 30, 0));
        for wrong in ["cpu", "cpu=x", "cpu=-1", "gpu=1"] {
            assert!(Amounts::parse(wrong).is_err(), "{wrong}");
        }
        let thresholds = EvictionThresholds::parse(DEFAULT_EVICTION_HARD).unwrap();
        assert_eq!(thresholds.amount("memory.available", 1 << 30), 100 << 20);
        assert_eq!(thresholds.amount("nodefs.available", 1000), 100);
        assert_eq!(EvictionThresholds::parse("").unwrap().amount("nodefs.available", 1000), 0);
        for wrong in ["memory.available", "memory.available<x", "nodefs.available<101%", "memory.free<1Mi"] {
            assert!(EvictionThresholds::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_kept_is_not_for_pods() {
        let capacity = Capacity {
            cpu_milli: 2_000,
            memory_bytes: 4 << 30,
            ephemeral_storage_bytes: 1_000,
            huge_pages: vec![("hugepages-2Mi".to_owned(), 1 << 30)],
            gpus: 0,
        };
        let reserve = Reserve {
            system: Amounts { cpu_milli: 100, memory_bytes: 1 << 30, ..Amounts::default() },
            kube: Amounts { cpu_milli: 5_000, ..Amounts::default() },
            eviction_hard: EvictionThresholds::parse("memory.available<1Gi,nodefs.available<10%").unwrap(),
        };
        let allocatable = reserve.allocatable(&capacity);
        assert_eq!((allocatable.cpu_milli, allocatable.memory_bytes), (0, 1 << 30));
        assert_eq!((allocatable.ephemeral_storage_bytes, &allocatable.huge_pages), (900, &capacity.huge_pages));
        assert_eq!(Reserve::default().allocatable(&capacity).memory_bytes, 3 << 30);
    }
}
