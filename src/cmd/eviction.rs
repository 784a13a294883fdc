//! The flags of evictions, in `orch server` and `orch agent`: the kubelet's, with its words.

use std::time::Duration;

use clap::Args;

use super::error::CmdError;
use crate::agent::eviction::threshold::{self, DEFAULT_EVICTION_HARD, Settings, Texts};

/// When pods are evicted.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Evictions")]
pub struct EvictionFlags {
    /// Margins of free memory, disk and process numbers below which pods are evicted at once; "" never does
    #[arg(long, env = "ORCH_EVICTION_HARD", default_value = DEFAULT_EVICTION_HARD, value_name = "THRESHOLDS")]
    pub eviction_hard: String,
    /// Margins below which pods are evicted after a grace period
    #[arg(long, env = "ORCH_EVICTION_SOFT", default_value = "", value_name = "THRESHOLDS")]
    pub eviction_soft: String,
    /// How long a margin of --eviction-soft must be passed
    #[arg(long, env = "ORCH_EVICTION_SOFT_GRACE_PERIOD", default_value = "", value_name = "TIMES")]
    pub eviction_soft_grace_period: String,
    /// How much beyond its margin is won back
    #[arg(long, env = "ORCH_EVICTION_MINIMUM_RECLAIM", default_value = "", value_name = "AMOUNTS")]
    pub eviction_minimum_reclaim: String,
    /// How long the node says that it is short after it last was
    #[arg(long, env = "ORCH_EVICTION_PRESSURE_TRANSITION_PERIOD", default_value = "5m", value_parser = threshold::duration, value_name = "TIME")]
    pub eviction_pressure_transition_period: Duration,
    /// Longest grace period, in seconds, of a pod that --eviction-soft evicts
    #[arg(long, env = "ORCH_EVICTION_MAX_POD_GRACE_PERIOD", default_value_t = 0, value_name = "SECONDS")]
    pub eviction_max_pod_grace_period: u32,
}

impl EvictionFlags {
    /// The flags, read.
    ///
    /// # Errors
    /// The flag that is wrong, and why.
    pub fn settings(&self) -> Result<Settings, CmdError> {
        let texts = Texts {
            hard: &self.eviction_hard,
            soft: &self.eviction_soft,
            soft_grace_period: &self.eviction_soft_grace_period,
            minimum_reclaim: &self.eviction_minimum_reclaim,
        };
        let thresholds = threshold::parse(texts).map_err(|(flag, why)| CmdError::Setting(format!("--{flag}: {why}")))?;
        Ok(Settings {
            thresholds: threshold::with_allocatable(thresholds),
            max_pod_grace: Duration::from_secs(self.eviction_max_pod_grace_period.into()),
            transition_period: self.eviction_pressure_transition_period,
        })
    }
}
