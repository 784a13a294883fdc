//! InterPodAffinity: what the pod prefers to be near to or far from, and what the pods that are there already do.

use super::{Scale, Score};

pub(super) const SCORE: Score = Score {
    name: "InterPodAffinity",
    weight: 2,
    scale: Scale::Range,
    applies: |cycle, _| cycle.affinity.has_likes(),
    number: |cycle, snapshot, slot| cycle.affinity.likes(snapshot.node(slot)),
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::scheduler::filter::Cycle;
    use crate::scheduler::pod_info::PodInfo;
    use crate::scheduler::snapshot::Snapshot;
    use crate::scheduler::snapshot::tests::{node, pod};

    fn prefers(kind: &str, term: &Value) -> Value {
        json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "podAffinityTerm": term}]}}})
    }

    fn likes(snapshot: &Snapshot, pod: &PodInfo) -> Vec<i64> {
        let cycle = Cycle::new(pod, snapshot);
        ["a1", "a2", "b1"].iter().map(|name| cycle.affinity.likes(snapshot.node(snapshot.find(name).unwrap()))).collect()
    }

    #[test]
    fn preferences_of_both_sides_count() {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
            snapshot.set_node(node(name, "8", &json!({"zone": zone})));
        }
        let term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
        let plain = pod("plain", "1", &json!({}));
        assert_eq!(likes(&snapshot, &pod("p", "1", &prefers("podAffinity", &term))), [0, 0, 0]);
        snapshot.place(pod("one", "1", &json!({})), "a1");
        snapshot.place(pod("two", "1", &json!({})), "a1");
        let far = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}});
        for (pod, expected) in [
            (&plain, [0, 0, 0]),
            (&pod("p", "1", &prefers("podAffinity", &term)), [20, 20, 0]),
            (&pod("p", "1", &prefers("podAntiAffinity", &far)), [-20, 0, 0]),
        ] {
            assert_eq!(likes(&snapshot, pod), expected);
        }
        snapshot.place(pod("loner", "1", &prefers("podAntiAffinity", &term)), "b1");
        assert_eq!(likes(&snapshot, &plain), [0, 0, -10]);
        let required = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
        snapshot.place(pod("friend", "1", &required), "a2");
        assert_eq!(likes(&snapshot, &plain), [1, 1, -10]);
        snapshot.remove_pod("loner");
        assert_eq!(likes(&snapshot, &plain), [1, 1, 0]);
    }

    #[test]
    fn namespaces_are_selected_by_their_labels() {
        let mut snapshot = Snapshot::default();
        ["a1", "a2", "b1"].iter().for_each(|name| snapshot.set_node(node(name, "8", &json!({"zone": name}))));
        snapshot.place(pod("one", "1", &json!({})), "a1");
        let labels = [("team".to_owned(), "blue".to_owned())].into();
        assert!(snapshot.namespaces.set("a", labels));
        let base = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}});
        for (selector, namespaces, expected) in [
            (json!(null), json!(null), 10),
            (json!({}), json!(null), 10),
            (json!({"matchLabels": {"team": "blue"}}), json!(null), 10),
            (json!({"matchLabels": {"team": "red"}}), json!(null), 0),
            (json!({"matchLabels": {"team": "red"}}), json!(["a"]), 10),
            (json!(null), json!(["b"]), 0),
        ] {
            let mut term = base.clone();
            term["namespaceSelector"] = selector.clone();
            term["namespaces"] = namespaces.clone();
            assert_eq!(likes(&snapshot, &pod("p", "1", &prefers("podAffinity", &term)))[0], expected, "{selector} {namespaces}");
        }
    }
}
