//! The flags of CPUs, in `orch server` and `orch agent`: the kubelet's, with its words.

use clap::{Args, ValueEnum};

use super::error::CmdError;
use crate::agent::cpu::{CpuSet, Kept, Policy};
use crate::agent::{Amounts, Reserve};

/// Who gets which CPUs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node")]
pub struct CpuFlags {
    /// Whether containers of Guaranteed pods that ask for whole CPUs get some of their own
    #[arg(long, env = "ORCH_CPU_MANAGER_POLICY", default_value = "none", value_enum, value_name = "POLICY")]
    pub cpu_manager_policy: PolicyName,
    /// CPUs that are kept for the system and orch, such as 0-1; in place of what --system-reserved and --kube-reserved say
    #[arg(long, env = "ORCH_RESERVED_CPUS", default_value = "", value_name = "CPUS")]
    pub reserved_cpus: String,
}

/// A policy by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    None,
    Static,
}

impl CpuFlags {
    /// The CPUs that are kept, if they are named.
    ///
    /// # Errors
    /// What is no list of CPUs.
    fn named(&self) -> Result<Option<CpuSet>, CmdError> {
        let parsed = self.reserved_cpus.parse::<CpuSet>();
        let parsed = parsed.map_err(|why| CmdError::Setting(format!("--reserved-cpus: unable to parse CPUSet, {why}")))?;
        Ok(Some(parsed).filter(|cpus| !cpus.is_empty()))
    }

    /// What is kept from pods when these CPUs are named: they are all that is kept of CPUs.
    ///
    /// # Errors
    /// What is no list of CPUs.
    pub fn reserve(&self, mut reserve: Reserve) -> Result<Reserve, CmdError> {
        if let Some(cpus) = self.named()? {
            let cpu_milli = i64::try_from(cpus.len()).unwrap_or(i64::MAX).saturating_mul(1_000);
            reserve.system.cpu_milli = cpu_milli;
            reserve.kube = Amounts { cpu_milli: 0, ..reserve.kube };
        }
        Ok(reserve)
    }

    /// The policy, of a node that keeps this from pods.
    ///
    /// # Errors
    /// What is no list of CPUs.
    pub fn policy(&self, reserve: &Reserve) -> Result<Policy, CmdError> {
        let named = self.named()?;
        let milli = reserve.system.cpu_milli.saturating_add(reserve.kube.cpu_milli);
        Ok(match self.cpu_manager_policy {
            PolicyName::None => Policy::None,
            PolicyName::Static => Policy::Static(named.map_or(Kept::Milli(milli), Kept::These)),
        })
    }
}
