//! The addresses of a node's pods: a bitmap over the node's podCIDR. The state is rebuilt from the pods at start.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::NetworkError;

/// Hands out the addresses of one range, each to one pod. The network and broadcast addresses and the first host address are
/// never given out. The search goes round, so that an address rests before it is used again.
#[derive(Debug)]
pub struct Ipam {
    range: Ipv4Net,
    used: Vec<u64>,
    next: u32,
    by_pod: HashMap<String, Ipv4Addr>,
}

impl Ipam {
    /// All of `range` free.
    pub fn new(range: Ipv4Net) -> Self {
        let size = size_of(range);
        let words = usize::try_from(size.div_ceil(64)).unwrap_or(usize::MAX);
        Self { range: range.trunc(), used: vec![0; words], next: FIRST, by_pod: HashMap::new() }
    }

    /// The address of a pod, if it has one.
    pub fn get(&self, pod_uid: &str) -> Option<Ipv4Addr> {
        self.by_pod.get(pod_uid).copied()
    }

    /// The address of a pod; takes the next free one if it has none.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`].
    pub fn allocate(&mut self, pod_uid: &str) -> Result<Ipv4Addr, NetworkError> {
        if let Some(address) = self.get(pod_uid) {
            return Ok(address);
        }
        let end = self.end();
        let free = (self.next..end).chain(FIRST..self.next.min(end)).find(|offset| !self.is_used(*offset));
        let offset = free.ok_or(NetworkError::Exhausted(self.range))?;
        self.next = offset + 1;
        let address = Ipv4Addr::from_bits(self.range.network().to_bits() + offset);
        self.mark(offset, true);
        self.by_pod.insert(pod_uid.to_owned(), address);
        Ok(address)
    }

    /// Takes a certain address for a pod, as after a restart. Returns whether it could be: it is in the range and no other pod's.
    pub fn reserve(&mut self, pod_uid: &str, address: Ipv4Addr) -> bool {
        if let Some(present) = self.get(pod_uid) {
            return present == address;
        }
        let Some(offset) = address.to_bits().checked_sub(self.range.network().to_bits()) else { return false };
        if !(FIRST..self.end()).contains(&offset) || self.is_used(offset) {
            return false;
        }
        self.mark(offset, true);
        self.next = self.next.max(offset + 1);
        self.by_pod.insert(pod_uid.to_owned(), address);
        true
    }

    /// Gives a pod's address back.
    pub fn release(&mut self, pod_uid: &str) -> Option<Ipv4Addr> {
        let address = self.by_pod.remove(pod_uid)?;
        self.mark(address.to_bits() - self.range.network().to_bits(), false);
        Some(address)
    }

    /// The pods that have an address.
    pub fn pods(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.by_pod.iter().map(|(uid, address)| (uid.as_str(), *address))
    }

    /// The offset behind the last usable one: the broadcast address.
    fn end(&self) -> u32 {
        size_of(self.range).saturating_sub(1)
    }

    fn is_used(&self, offset: u32) -> bool {
        let (word, bit) = place(offset);
        self.used.get(word).is_none_or(|bits| bits & bit != 0)
    }

    fn mark(&mut self, offset: u32, used: bool) {
        let (word, bit) = place(offset);
        if let Some(bits) = self.used.get_mut(word) {
            *bits = if used { *bits | bit } else { *bits & !bit };
        }
    }
}

/// The first offset that is given out: 0 is the network, 1 is kept for the node.
const FIRST: u32 = 2;

fn place(offset: u32) -> (usize, u64) {
    (offset as usize / 64, 1 << (offset % 64))
}

fn size_of(range: Ipv4Net) -> u32 {
    1_u32.checked_shl(u32::from(32 - range.prefix_len())).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn hands_out_every_host_address_once() {
        let mut ipam = Ipam::new("10.42.3.0/29".parse().unwrap());
        let given: Vec<String> = (0..5).map(|pod| ipam.allocate(&pod.to_string()).unwrap().to_string()).collect();
        assert_eq!(given, ["10.42.3.2", "10.42.3.3", "10.42.3.4", "10.42.3.5", "10.42.3.6"]);
        assert_eq!(ipam.allocate("0").unwrap(), ip("10.42.3.2"), "idempotent");
        let error = ipam.allocate("x").unwrap_err();
        assert_eq!(error.to_string(), "no free address in 10.42.3.0/29; delete pods or give the node a larger podCIDR");
        assert_eq!(ipam.release("1"), Some(ip("10.42.3.3")));
        assert_eq!(ipam.release("1"), None);
        assert_eq!(ipam.allocate("x").unwrap(), ip("10.42.3.3"));
    }

    #[test]
    fn lets_an_address_rest() {
        let mut ipam = Ipam::new("10.0.0.0/24".parse().unwrap());
        assert_eq!(ipam.allocate("a").unwrap(), ip("10.0.0.2"));
        ipam.release("a");
        assert_eq!(ipam.allocate("b").unwrap(), ip("10.0.0.3"));
    }

    #[test]
    fn reserves_what_is_in_the_range_and_free() {
        let mut ipam = Ipam::new("10.42.0.0/24".parse().unwrap());
        let cases = [
            ("a", "10.42.0.9", true),
            ("a", "10.42.0.9", true),
            ("a", "10.42.0.10", false),
            ("b", "10.42.0.9", false),
            ("b", "10.42.0.0", false),
            ("b", "10.42.0.1", false),
            ("b", "10.42.0.255", false),
            ("b", "10.42.1.2", false),
            ("b", "10.41.255.9", false),
            ("b", "10.42.0.254", true),
        ];
        for (pod, address, expected) in cases {
            assert_eq!(ipam.reserve(pod, ip(address)), expected, "{pod} {address}");
        }
        assert_eq!(ipam.pods().count(), 2);
    }

    #[test]
    fn tiny_ranges_are_exhausted_at_once() {
        for range in ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32"] {
            let mut ipam = Ipam::new(range.parse().unwrap());
            let count = (0..8).take_while(|pod| ipam.allocate(&pod.to_string()).is_ok()).count();
            assert_eq!(count, usize::from(range.ends_with("/30")), "{range}");
        }
    }
}
