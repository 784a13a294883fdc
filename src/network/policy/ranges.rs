//! Ranges of addresses and ports, inclusive at both ends: an interval set of the kernel takes only ranges that do not overlap, so
//! blocks with exceptions are resolved here.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// First and last address.
pub(super) type AddressRange = (Ipv4Addr, Ipv4Addr);

/// Joins ranges that overlap or touch; the result is sorted.
pub(super) fn join(mut ranges: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// What is left of a range without the given ones.
fn without(whole: (u32, u32), holes: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    let (mut left, mut first) = (Vec::new(), Some(whole.0));
    for (from, to) in join(holes) {
        let Some(start) = first.filter(|start| *start <= whole.1) else { break };
        if to < start || from > whole.1 {
            continue;
        }
        if from > start {
            left.push((start, from - 1));
        }
        first = to.checked_add(1);
    }
    left.extend(first.filter(|start| *start <= whole.1).map(|start| (start, whole.1)));
    left
}

fn bounds(net: Ipv4Net) -> (u32, u32) {
    (net.network().to_bits(), net.broadcast().to_bits())
}

/// The addresses of several blocks, each without its exceptions.
pub(super) fn blocks(blocks: impl IntoIterator<Item = (Ipv4Net, Vec<Ipv4Net>)>) -> Vec<AddressRange> {
    let each = blocks.into_iter().flat_map(|(net, except)| without(bounds(net), except.into_iter().map(bounds).collect()));
    join(each.collect()).into_iter().map(|(first, last)| (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last))).collect()
}

/// Whether one of the ranges holds all of a network.
pub(super) fn hold(ranges: &[AddressRange], net: Ipv4Net) -> bool {
    ranges.iter().any(|(first, last)| *first <= net.network() && net.broadcast() <= *last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(given: &[(&str, &[&str])]) -> String {
        let parsed = given.iter().map(|(net, except)| {
            (net.parse().unwrap(), except.iter().map(|hole| hole.parse().unwrap()).collect::<Vec<Ipv4Net>>())
        });
        blocks(parsed).iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn blocks_lose_their_exceptions_and_nothing_else() {
        type Case = (&'static [(&'static str, &'static [&'static str])], &'static str);
        let cases: [Case; 9] = [
            (&[("10.0.0.0/24", &[])], "10.0.0.0-10.0.0.255"),
            (&[("10.0.0.0/24", &["10.0.0.0/25"])], "10.0.0.128-10.0.0.255"),
            (&[("10.0.0.0/24", &["10.0.0.128/25"])], "10.0.0.0-10.0.0.127"),
            (&[("10.0.0.0/24", &["10.0.0.5/32", "10.0.0.4/32"])], "10.0.0.0-10.0.0.3 10.0.0.6-10.0.0.255"),
            (&[("10.0.0.0/24", &["10.0.0.0/24"])], ""),
            (&[("0.0.0.0/0", &["255.255.255.255/32", "0.0.0.0/32"])], "0.0.0.1-255.255.255.254"),
            // What one block excepts another may hold.
            (&[("10.0.0.0/24", &["10.0.0.7/32"]), ("10.0.0.7/32", &[])], "10.0.0.0-10.0.0.255"),
            (&[("10.0.1.0/24", &[]), ("10.0.0.0/24", &[])], "10.0.0.0-10.0.1.255"),
            // An exception outside of its block (the API refuses it) takes nothing away.
            (&[("10.0.0.0/24", &["10.0.9.0/24"])], "10.0.0.0-10.0.0.255"),
        ];
        for (given, expected) in cases {
            assert_eq!(text(given), expected, "{given:?}");
        }
    }

    #[test]
    fn holds_what_no_exception_touches() {
        let ranges = blocks([("10.0.0.0/8".parse().unwrap(), vec!["10.42.0.5/32".parse().unwrap()])]);
        assert!(hold(&ranges, "10.43.0.0/16".parse().unwrap()) && !hold(&ranges, "10.42.0.0/16".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn without_is_what_the_words_say(first in 0_u32..40, length in 0_u32..40, holes in proptest::collection::vec((0_u32..80, 0_u32..10), 0..6)) {
            let holes: Vec<_> = holes.into_iter().map(|(from, length)| (from, from + length)).collect();
            let left = without((first, first + length), holes.clone());
            let within = |ranges: &[(u32, u32)], at: u32| ranges.iter().any(|(from, to)| (*from..=*to).contains(&at));
            for at in 0..100 {
                let expected = (first..=first + length).contains(&at) && !within(&holes, at);
                prop_assert_eq!(within(&left, at), expected);
            }
            prop_assert!(left.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}
