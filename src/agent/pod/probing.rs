//! When to probe: one task for each running instance that has probes. The startup probe comes first; then readiness and liveness
//! go on until the instance ends. Thresholds and words are those of the kubelet's `prober`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Probe};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::mailbox::Mailbox;
use super::state::Member;
use crate::agent::probe::{Ill, Target};
use crate::rt::random;

/// Until a container that nobody listens in yet is looked at again.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The instance that is probed.
#[derive(Clone)]
pub struct Probed {
    pub context: Arc<Context>,
    pub mailbox: Arc<Mailbox>,
    pub pod: Arc<Pod>,
    pub member: Member,
    pub id: String,
    pub pod_ip: Option<IpAddr>,
    /// How long it has run: counts towards the initial delay.
    pub age: Duration,
    pub is_started: bool,
}

/// Whether a container has anything to probe.
pub fn has_probes(member: &Member) -> bool {
    let spec = &member.spec;
    spec.startup_probe.is_some() || spec.readiness_probe.is_some() || spec.liveness_probe.is_some()
}

/// What ends the probes of an instance.
pub struct Probes {
    /// All of them.
    pub all: CancellationToken,
    /// Those that may restart it: startup and liveness.
    pub vital: CancellationToken,
}

/// Starts to probe; ends when the token is cancelled.
pub fn spawn(probed: Probed) -> Probes {
    let tasks = probed.context.tasks.clone();
    let all = tasks.token().child_token();
    let vital = all.child_token();
    let run = (all.clone(), vital.clone());
    tasks.spawn(async move {
        run.0.run_until_cancelled(probed.run(&run.1)).await;
    });
    Probes { all, vital }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// Counts results in a row and says when the verdict turns.
#[derive(Debug, Clone, Copy)]
struct Threshold {
    success: u32,
    failure: u32,
    run: u32,
    last: Option<bool>,
}

impl Threshold {
    fn new(probe: &Probe) -> Self {
        let positive = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        let (success, failure) = (positive(probe.success_threshold, 1), positive(probe.failure_threshold, 3));
        Self { success, failure, run: 0, last: None }
    }

    /// The verdict, when enough results in a row agree.
    fn note(&mut self, is_success: bool) -> Option<bool> {
        self.run = if self.last == Some(is_success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(is_success);
        (self.run >= if is_success { self.success } else { self.failure }).then_some(is_success)
    }
}

impl Probed {
    async fn run(self, vital: &CancellationToken) {
        if let Some(probe) = self.member.spec.startup_probe.as_ref().filter(|_| !self.is_started)
            && vital.run_until_cancelled(self.watch(Kind::Startup, probe)).await.is_none()
        {
            return;
        }
        let readiness = async {
            if let Some(probe) = &self.member.spec.readiness_probe {
                self.watch(Kind::Readiness, probe).await;
            }
        };
        let liveness = async {
            if let Some(probe) = &self.member.spec.liveness_probe {
                vital.run_until_cancelled(self.watch(Kind::Liveness, probe)).await;
            }
        };
        futures_util::future::join(readiness, liveness).await;
    }

    /// Probes again and again. Ends for a startup probe with its success, and for an unhealthy container.
    async fn watch(&self, kind: Kind, probe: &Probe) {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        tokio::time::sleep(seconds(probe.initial_delay_seconds, 0).saturating_sub(self.age)).await;
        if kind != Kind::Readiness && !self.age.is_zero() {
            // After a restart of the agent not all containers of the node are probed at once.
            tokio::time::sleep(random::jitter(Duration::ZERO, 1.0).min(period)).await;
        }
        let mut threshold = Threshold::new(probe);
        let mut told = None;
        let mut result = self.look(probe).await;
        loop {
            let (reason, message) = match &result {
                Err(ill) => ("Unhealthy", Some(format!("{} probe failed: {}", kind.word(), ill.words))),
                Ok(warning) => {
                    ("ProbeWarning", warning.as_ref().map(|warning| format!("{} probe warning: {warning}", kind.word())))
                }
            };
            if let Some(message) = message {
                self.context.event(&self.pod, Some(self.member.name()), true, reason, &message);
            }
            match threshold.note(result.is_ok()) {
                Some(verdict) if kind == Kind::Readiness => {
                    // What the worker knows already would make it look at the whole pod once more.
                    if told.replace(verdict) != Some(verdict) {
                        self.mailbox.probe(&self.id, |news| news.is_ready = Some(verdict));
                    }
                }
                Some(true) if kind == Kind::Startup => {
                    return self.mailbox.probe(&self.id, |news| news.is_started = Some(true));
                }
                Some(false) => {
                    let word = kind.word().to_lowercase();
                    let message = format!("Container {} failed {word} probe, will be restarted", self.member.name());
                    let grace = probe.termination_grace_period_seconds;
                    return self.mailbox.probe(&self.id, |news| news.unhealthy = Some((message, grace)));
                }
                Some(true) | None => {}
            }
            let awaits_server = kind != Kind::Liveness && result.is_err_and(|ill| ill.is_refused);
            result = if awaits_server { self.look_soon(probe, period).await } else { self.look_after(probe, period).await };
        }
    }

    async fn look(&self, probe: &Probe) -> Result<Option<String>, Ill> {
        let target = Target { container: &self.member.spec, id: &self.id, pod_ip: self.pod_ip };
        self.context.prober.check(probe, &target).await
    }

    async fn look_after(&self, probe: &Probe, pause: Duration) -> Result<Option<String>, Ill> {
        tokio::time::sleep(pause).await;
        self.look(probe).await
    }

    /// Looks when the period is over, or as soon as somebody listens: a server that takes a moment to start need not wait for the
    /// next period to be found ready. Pauses double, so that it waits no longer than it took to start; looks between two periods
    /// that find nobody count as none, so thresholds mean what they mean upstream.
    async fn look_soon(&self, probe: &Probe, period: Duration) -> Result<Option<String>, Ill> {
        let (mut left, mut pause) = (period, FIRST_PAUSE);
        loop {
            let result = self.look_after(probe, pause.min(left)).await;
            if pause >= left || !result.as_ref().is_err_and(|ill| ill.is_refused) {
                return result;
            }
            left -= pause;
            pause = (pause * 2).min(period / 4);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_need_a_row_of_results() {
        let mut threshold = Threshold { success: 2, failure: 3, run: 0, last: None };
        let results = [true, true, false, true, false, false, false, false];
        let verdicts: Vec<Option<bool>> = results.into_iter().map(|result| threshold.note(result)).collect();
        assert_eq!(verdicts, [None, Some(true), None, None, None, None, Some(false), Some(false)]);
    }
}
