//! The kernel's side of the proxy: the desired content, kept in force.

use super::layout::{self, Layout};
use super::stale::Stale;
use super::table::Desired;
use crate::network::nft::{Element, Monitor, Nft, NftError};

/// The table of this node, and what is wanted of it.
pub(super) struct Kernel {
    nft: Nft,
    layout: Layout,
    pub(super) desired: Desired,
    /// Whether the kernel's table is known to be what was sent: then differences do.
    in_step: bool,
}

impl Kernel {
    pub(super) fn new(nft: Nft, layout: Layout) -> Self {
        Self { nft, layout, desired: Desired::default(), in_step: false }
    }

    /// Tells when somebody else changed the table.
    ///
    /// # Errors
    /// When there is no socket.
    pub(super) fn monitor(&self) -> Result<Monitor, NftError> {
        self.nft.monitor(&self.layout.table)
    }

    /// The table may not be what was sent: the next [`sync`](Self::sync) makes it anew.
    pub(super) const fn distrust(&mut self) {
        self.in_step = false;
    }

    /// Brings the kernel's table up to what is desired, and has connections forgotten that lead to endpoints that have gone.
    ///
    /// # Errors
    /// What the kernel refused; the next call makes the table anew.
    pub(super) async fn sync(&mut self, stale: &Stale) -> Result<(), NftError> {
        // Whatever ends this before it is known to be done, the next one begins anew.
        let in_step = std::mem::take(&mut self.in_step);
        if in_step {
            let changes = self.desired.changes(&self.layout);
            self.nft.commit(changes).await?;
        } else {
            self.replace().await?;
        }
        self.in_step = true;
        stale.note(self.desired.take_changed_fronts());
        Ok(())
    }

    /// Makes the table anew, in one transaction: packets see the old one or the new one.
    async fn replace(&mut self) -> Result<(), NftError> {
        let affinities = self.affinities().await?;
        if affinities.iter().any(|known| !known.is_empty()) {
            let whole = self.desired.whole(&self.layout, affinities);
            match self.nft.commit(whole).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "clients do not stay with their endpoints over this change of rules"),
            }
        }
        let whole = self.desired.whole(&self.layout, Default::default());
        self.nft.commit(whole).await
    }

    /// Which clients stay with which endpoints, from the table that is there. It may be that of another version.
    async fn affinities(&self) -> Result<[Vec<Element>; 2], NftError> {
        let mut known: [Vec<Element>; 2] = Default::default();
        for (set, known) in layout::affinity_sets().iter().zip(&mut known) {
            known.extend(self.nft.elements(&self.layout.table, set).await?);
            known.retain(|element| element.key.bytes().len() == set.key_bytes());
        }
        Ok(known)
    }
}
