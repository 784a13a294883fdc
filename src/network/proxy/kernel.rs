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
        let batch = if self.in_step {
            self.desired.changes(&self.layout)
        } else {
            let affinities = self.affinities().await?;
            self.desired.whole(&self.layout, affinities)
        };
        // Whatever ends this before it is known to be done, the next one begins anew.
        self.in_step = false;
        self.nft.commit(batch).await?;
        self.in_step = true;
        stale.note(self.desired.take_changed_fronts());
        Ok(())
    }

    /// Which clients stay with which endpoints, from the table that is there.
    async fn affinities(&self) -> Result<[Vec<Element>; 2], NftError> {
        let [addresses, ports] = layout::affinity_maps();
        let table = &self.layout.table;
        Ok([self.nft.elements(table, &addresses).await?, self.nft.elements(table, &ports).await?])
    }
}
