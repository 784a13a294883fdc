//! Turns by name: whoever works on something (a volume, a target, an image) keeps out others who would, and nobody else.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// One gate a name; a name that nobody uses has none.
#[derive(Debug, Default)]
pub struct Gates(Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Gates {
    /// Waits for the turn; it ends when what is returned is dropped.
    pub async fn enter(&self, name: &str) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.0.lock();
            // One that is only here is neither held nor waited for.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            Arc::clone(gates.entry(name.to_owned()).or_default())
        };
        gate.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_by_name() {
        let gates = Gates::default();
        let first = gates.enter("a").await;
        assert!(gates.enter("a").now_or_never().is_none());
        assert!(gates.enter("b").now_or_never().is_some());
        drop(first);
        assert!(gates.enter("a").now_or_never().is_some());
        assert_eq!(gates.0.lock().len(), 1, "names that nobody uses are forgotten");
    }
}
