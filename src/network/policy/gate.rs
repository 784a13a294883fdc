//! The gate: no pod gets its interface up before the rules about it are in force.
//!
//! Pods come here with their address and wait; [`policy`](super) lets them through. What they wait for:
//!
//! - Nothing is known of the policies ([`Mode::Unknown`]): every new pod waits. An agent that has ever synced knows, from its
//!   disk, what there was; so this is an agent that never did, and letting pods through unfiltered because the API is away would
//!   make that the way around every policy. A wait ends with an error after [`PATIENCE`], the pod's worker tries again and
//!   says so in an event.
//! - There is no policy in the cluster ([`Mode::Open`]): nobody waits, and nothing is computed.
//! - There are policies ([`Mode::Enforced`]): a pod waits for the transaction that holds its rules, some milliseconds.
//!
//! A pod that had its network before the agent started passes at once: the kernel has kept its rules.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::facts::PodFacts;
use super::planner::Local;
use crate::network::NetworkError;

/// How long a pod waits before its worker hears of it and tries again.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of the cluster's policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing yet.
    Unknown,
    /// There are none.
    Open,
    /// There are some, and they are enforced.
    Enforced,
}

struct Entry {
    local: Local,
    /// Whether the kernel holds its rules.
    in_force: bool,
}

struct State {
    mode: Mode,
    pods: HashMap<Box<str>, Entry>,
    /// Pods that came or went since the last [`Gate::take`].
    touched: BTreeSet<Box<str>>,
    trouble: Option<String>,
}

/// Where pods wait for their rules.
pub(crate) struct Gate {
    state: Mutex<State>,
    /// Counts what may let pods through.
    turn: watch::Sender<u64>,
    /// Wakes the part when pods came or went.
    wake: Notify,
}

impl Gate {
    /// An open gate: for a node on which nothing enforces policies.
    pub(crate) fn new() -> Self {
        let state = State { mode: Mode::Open, pods: HashMap::new(), touched: BTreeSet::new(), trouble: None };
        Self { state: Mutex::new(state), turn: watch::Sender::new(0), wake: Notify::new() }
    }

    /// What is known changes; if that opens the gate, everybody passes.
    pub(crate) fn set_mode(&self, mode: Mode) {
        let mut state = self.state.lock();
        state.mode = mode;
        state.trouble = None;
        drop(state);
        self.turn.send_modify(|turn| *turn += 1);
    }

    /// Waits until the rules about a pod are in force. Cancel safe.
    ///
    /// # Errors
    /// When they are not within [`PATIENCE`]: a retry may help.
    pub(crate) async fn admit(&self, facts: Arc<PodFacts>, ip: Ipv4Addr) -> Result<(), NetworkError> {
        let uid = facts.uid.clone();
        let mut turns = self.turn.subscribe();
        self.enter(&uid, Local { ip, facts: Some(facts) }, false);
        let passes = async {
            // The sender lives as long as the gate: waiting cannot fail.
            while !self.is_through(&uid) && turns.changed().await.is_ok() {}
        };
        if tokio::time::timeout(PATIENCE, passes).await.is_ok() {
            return Ok(());
        }
        let state = self.state.lock();
        let why = match (&state.trouble, state.mode) {
            (Some(trouble), _) => trouble.as_str(),
            (None, Mode::Unknown) => "the cluster's network policies are not known yet",
            (None, _) => "the kernel does not hold them yet",
        };
        Err(NetworkError::step("wait for the pod's network policies to be in force", why))
    }

    /// Takes over a pod that had its network before the agent started.
    pub(crate) fn adopt(&self, uid: &str, ip: Ipv4Addr) {
        self.enter(uid, Local { ip, facts: None }, true);
    }

    /// A pod has no address any more.
    pub(crate) fn leave(&self, uid: &str) {
        let mut state = self.state.lock();
        if state.pods.remove(uid).is_some() {
            state.touched.insert(uid.into());
            drop(state);
            self.wake.notify_one();
        }
    }

    fn enter(&self, uid: &str, local: Local, in_force: bool) {
        let mut state = self.state.lock();
        let in_force = in_force || state.pods.get(uid).is_some_and(|entry| entry.in_force && entry.local.ip == local.ip);
        state.pods.insert(uid.into(), Entry { local, in_force });
        state.touched.insert(uid.into());
        drop(state);
        self.wake.notify_one();
    }

    fn is_through(&self, uid: &str) -> bool {
        let state = self.state.lock();
        state.mode == Mode::Open || state.pods.get(uid).is_some_and(|entry| entry.in_force)
    }

    /// Waits until pods came or went. Cancel safe.
    pub(crate) async fn touched(&self) {
        self.wake.notified().await;
    }

    /// The pods that came or went since the last call, with what is known of them.
    pub(crate) fn take(&self) -> Vec<(Box<str>, Option<Local>)> {
        let mut state = self.state.lock();
        let touched = std::mem::take(&mut state.touched);
        touched.into_iter().map(|uid| (uid.clone(), state.pods.get(&uid).map(|entry| entry.local.clone()))).collect()
    }

    /// Whether a pod waits for its rules.
    pub(crate) fn is_waited_at(&self) -> bool {
        self.state.lock().pods.values().any(|entry| !entry.in_force)
    }

    /// Every pod counts as touched: for a reader that begins.
    pub(crate) fn touch_all(&self) {
        let mut state = self.state.lock();
        let State { pods, touched, .. } = &mut *state;
        touched.extend(pods.keys().cloned());
    }

    /// The kernel holds the rules about these pods, and about all that came before.
    pub(crate) fn enforced(&self, pods: &[(Box<str>, Option<Local>)]) {
        let mut state = self.state.lock();
        (state.mode, state.trouble) = (Mode::Enforced, None);
        for (uid, local) in pods {
            if let Some(entry) =
                state.pods.get_mut(uid).filter(|entry| local.as_ref().is_some_and(|local| local.ip == entry.local.ip))
            {
                entry.in_force = true;
            }
        }
        drop(state);
        self.turn.send_modify(|turn| *turn += 1);
    }

    /// Why the kernel does not hold the rules: the words for those who wait.
    pub(crate) fn set_trouble(&self, why: String) {
        self.state.lock().trouble = Some(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(uid: &str) -> Arc<PodFacts> {
        let pod = serde_json::json!({ "metadata": { "name": uid, "uid": uid } });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn ip(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, number)
    }

    #[tokio::test(start_paused = true)]
    async fn pods_wait_for_their_own_rules() {
        let gate = Arc::new(Gate::new());
        gate.admit(facts("early"), ip(1)).await.unwrap();
        gate.set_mode(Mode::Unknown);
        gate.adopt("old", ip(2));
        gate.admit(facts("old"), ip(2)).await.unwrap();
        let error = gate.admit(facts("new"), ip(3)).await.unwrap_err();
        assert!(error.to_string().ends_with("not known yet"), "{error}");

        let taken = gate.take();
        assert!(taken.len() == 3 && gate.is_waited_at());
        let (waiting, other) = (Arc::clone(&gate), Arc::clone(&gate));
        let (first, second) = tokio::join!(waiting.admit(facts("new"), ip(3)), async {
            gate.enforced(&taken);
            other.admit(facts("later"), ip(4)).await
        });
        first.unwrap();
        assert!(second.unwrap_err().to_string().ends_with("does not hold them yet"));
        gate.set_trouble("no such table".to_owned());
        assert!(gate.admit(facts("later"), ip(4)).await.unwrap_err().to_string().ends_with("no such table"));
        // An address that went to another pod says nothing about that pod.
        gate.leave("new");
        gate.admit(facts("new"), ip(5)).await.unwrap_err();
        gate.set_mode(Mode::Open);
        gate.admit(facts("later"), ip(4)).await.unwrap();
        assert!(gate.take().iter().any(|(uid, local)| &**uid == "new" && local.as_ref().unwrap().ip == ip(5)));
    }
}
