//! What of the machine is kept from pods: for the system, for `orch` itself, and as the margin below which pods are evicted.
//! A node's `allocatable` is its capacity less all three (upstream `pkg/kubelet/cm/node_container_manager`).

use super::facts::Capacity;
use crate::agent::eviction::signal::Signal;
use crate::agent::eviction::threshold::Settings;
use crate::api::quantity::Quantity;

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

/// All that is kept from pods, beside the margins of evictions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reserve {
    pub system: Amounts,
    pub kube: Amounts,
}

impl Reserve {
    /// How many processes all pods together may have, where some are kept from them; `capacity` is how many there can be.
    pub fn pids(&self, capacity: u64) -> Option<i64> {
        let kept = self.system.pids.saturating_add(self.kube.pids);
        (kept > 0).then(|| i64::try_from(capacity).unwrap_or(i64::MAX).saturating_sub(kept).max(0))
    }

    /// What pods may have of a machine; no pod may count on the margins below which pods are evicted.
    pub fn allocatable(&self, capacity: &Capacity, eviction: &Settings) -> Capacity {
        let left = |all: i64, of: fn(&Amounts) -> i64, margin: i64| {
            (all.saturating_sub(of(&self.system)).saturating_sub(of(&self.kube)).saturating_sub(margin)).max(0)
        };
        let huge: i64 = capacity.huge_pages.iter().map(|(_, bytes)| *bytes).sum();
        let memory = capacity.memory_bytes.saturating_sub(huge);
        let memory_margin = eviction.hard_amount(Signal::MemoryAvailable, capacity.memory_bytes);
        let disk_margin = eviction.hard_amount(Signal::NodefsAvailable, capacity.ephemeral_storage_bytes);
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
    use crate::agent::eviction::threshold::{Texts, parse};

    #[test]
    fn flags_parse() {
        let amounts = Amounts::parse("cpu=500m,memory=1Gi").unwrap();
        assert_eq!((amounts.cpu_milli, amounts.memory_bytes, amounts.pids), (500, 1 << 30, 0));
        for wrong in ["cpu", "cpu=x", "cpu=-1", "gpu=1"] {
            assert!(Amounts::parse(wrong).is_err(), "{wrong}");
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
        };
        let texts = Texts { hard: "memory.available<1Gi,nodefs.available<10%", ..Texts::default() };
        let eviction = Settings { thresholds: parse(texts).unwrap(), ..Settings::default() };
        let allocatable = reserve.allocatable(&capacity, &eviction);
        assert_eq!((allocatable.cpu_milli, allocatable.memory_bytes), (0, 1 << 30));
        assert_eq!((allocatable.ephemeral_storage_bytes, &allocatable.huge_pages), (900, &capacity.huge_pages));
        assert_eq!(Reserve::default().allocatable(&capacity, &Settings::default()).memory_bytes, 3 << 30);
    }
}
