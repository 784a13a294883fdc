//! Sets of completion indexes, written as `1,3-5,7` in the status of an Indexed job. They follow upstream's `orderedIntervals`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// Annotation and label of a pod: its completion index.
pub(super) const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Indexes as disjoint intervals, both ends included, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads the form that [`Display`](std::fmt::Display) writes; indexes from `completions` on, and what is no number, are left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut found = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            if first >= completions {
                break;
            }
            found.push(first, last.min(completions - 1));
        }
        found
    }

    /// The union with single indexes.
    pub(super) fn with(&self, indexes: &BTreeSet<i32>) -> Self {
        let single = indexes.iter().map(|index| (*index, *index));
        self.union(&Self(single.collect()))
    }

    /// The union with another set.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut intervals: Vec<(i32, i32)> = self.0.iter().chain(&other.0).copied().collect();
        intervals.sort_unstable();
        let mut union = Self::default();
        intervals.into_iter().for_each(|(first, last)| union.push(first, last));
        union
    }

    /// Adds an interval that begins at or after the last one's beginning.
    fn push(&mut self, first: i32, last: i32) {
        match self.0.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ if first <= last => self.0.push((first, last)),
            _ => {}
        }
    }

    /// How many indexes there are.
    pub(super) fn total(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    pub(super) fn has(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many indexes both have.
    pub(super) fn overlap(&self, other: &Self) -> i32 {
        let common = |left: &(i32, i32), right: &(i32, i32)| (left.1.min(right.1) - left.0.max(right.0) + 1).max(0);
        let (mut total, mut left, mut right) = (0, 0, 0);
        while let (Some(ours), Some(theirs)) = (self.0.get(left), other.0.get(right)) {
            total += common(ours, theirs);
            if ours.1 <= theirs.1 {
                left += 1;
            } else {
                right += 1;
            }
        }
        total
    }

    /// The lowest `count` indexes below `completions` that are not in the set.
    pub(super) fn first_missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut missing = Vec::new();
        let mut candidate = 0;
        let end = (completions, completions);
        for (first, last) in self.0.iter().copied().chain([end]) {
            while candidate < first.min(completions) && missing.len() < count {
                missing.push(candidate);
                candidate += 1;
            }
            candidate = candidate.max(last.saturating_add(1));
        }
        missing
    }
}

impl std::fmt::Display for Indexes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match last - first {
                0 => write!(formatter, "{comma}{first}")?,
                1 => write!(formatter, "{comma}{first},{last}")?,
                _ => write!(formatter, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// The completion index of a pod, if it has a valid one.
pub(super) fn of(pod: &Pod) -> Option<i32> {
    let text = pod.metadata.annotations.as_ref()?.get(COMPLETION_INDEX)?;
    text.parse().ok().filter(|index| *index >= 0)
}

/// The completion indexes of pods.
pub(super) fn of_all<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> BTreeSet<i32> {
    pods.into_iter().filter_map(|pod| of(pod)).collect()
}

/// The pods of each index below `completions`, and under `None` those that have no such index.
pub(super) fn group(pods: &[Arc<Pod>], completions: i32) -> HashMap<Option<i32>, Vec<Arc<Pod>>> {
    let mut groups: HashMap<Option<i32>, Vec<Arc<Pod>>> = HashMap::new();
    for pod in pods {
        groups.entry(of(pod).filter(|index| *index < completions)).or_default().push(Arc::clone(pod));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        for (text, completions, written, total) in [
            ("", 5, "", 0),
            ("1,3-5,7", 10, "1,3-5,7", 5),
            ("0,1,2", 10, "0-2", 3),
            ("0,1", 10, "0,1", 2),
            ("1-7,9", 5, "1-4", 4),
            ("x,2,3-y", 5, "2", 1),
        ] {
            let indexes = Indexes::parse(text, completions);
            assert_eq!((indexes.to_string().as_str(), indexes.total()), (written, total), "{text}");
        }
    }

    #[test]
    fn sets() {
        let indexes = Indexes::parse("0-2,5,8-9", 20);
        assert_eq!((0..10).filter(|index| indexes.has(*index)).collect::<Vec<_>>(), [0, 1, 2, 5, 8, 9]);
        assert_eq!(indexes.with(&[3, 7, 12].into()).to_string(), "0-3,5,7-9,12");
        assert_eq!(indexes.union(&Indexes::parse("2-6", 20)).to_string(), "0-6,8,9");
        assert_eq!(indexes.overlap(&Indexes::parse("1-5,9-15", 20)), 4);
        assert_eq!(indexes.first_missing(3, 20), [3, 4, 6]);
        assert_eq!(indexes.first_missing(9, 8), [3, 4, 6, 7]);
        assert_eq!(Indexes::default().first_missing(2, 2), [0, 1]);
        assert!(Indexes::default().first_missing(2, 0).is_empty());
    }
}
