//! Owners, as tables: each row is a story of applies and updates of one object, and how it ends.

use super::apply::{Apply, LAST_APPLIED, conflict_error, first_owners};
use super::track::{self, Change};
use super::*;
use crate::api::Object;

const NOW: &str = "2026-01-01T00:00:00Z";

struct Story {
    rule: Rule,
    reset: Set,
    object: Object,
    managed: Managed,
}

fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

fn manager(name: &str, operation: Operation) -> Manager {
    Manager { name: name.to_owned(), operation, api_version: "v1".to_owned(), subresource: String::new() }
}

impl Story {
    fn of(kind: &str) -> Self {
        let rule = Rule::of_object(Some(&format!("io.k8s.api.{kind}")));
        Self { rule, reset: Set::default(), object: Object::default(), managed: Managed::default() }
    }

    fn apply_with(&mut self, name: &str, config: Value, force: bool) -> Result<bool, String> {
        let config = object(config);
        fields::check(&config.0, self.rule)?;
        let manager = manager(name, Operation::Apply);
        let (live, rule, reset) = (&self.object, self.rule, &self.reset);
        let apply = Apply { live, config: &config, rule, manager: &manager, force, reset, now: NOW };
        let applied = apply.run(self.managed.clone()).map_err(|conflicts| conflict_error(&conflicts).message)?;
        self.managed = applied.managed;
        let is_changed = applied.object.is_some();
        self.object = applied.object.unwrap_or_else(|| self.object.clone());
        Ok(is_changed)
    }

    fn apply(&mut self, name: &str, config: Value) {
        self.apply_with(name, config, false).unwrap();
    }

    fn update(&mut self, name: &str, new: Value) {
        let new = object(new);
        let change = Change { old: &self.object.0, new: &new.0, rule: self.rule, reset: &self.reset, now: NOW };
        self.managed = track::update(&change, self.managed.clone(), manager(name, Operation::Update));
        self.object = new;
    }

    fn owners(&self) -> Value {
        let pairs = self.managed.entries.iter().map(|entry| {
            let mark = if entry.manager.operation == Operation::Apply { "" } else { "~" };
            (format!("{mark}{}", entry.manager.name), entry.fields.to_value())
        });
        Value::Object(pairs.collect())
    }

    #[track_caller]
    fn ends(&self, expected: &Value, owners: &Value) {
        assert_eq!(&Value::Object(self.object.0.clone()), expected);
        assert_eq!(&self.owners(), owners);
    }
}

#[test]
fn what_is_no_longer_applied_goes() {
    let spec = |spec: Value| json!({"spec": spec});
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let container = |names: &[&str]| {
        let list: Vec<Value> = names.iter().map(|name| json!({"name": name, "image": "x"})).collect();
        json!({"spec": {"containers": list}})
    };
    for (first, second, end) in [
        // A scalar, a map's key, the whole map.
        (spec(json!({"nodeName": "a", "hostname": "h"})), spec(json!({"hostname": "h"})), spec(json!({"hostname": "h"}))),
        (labels(json!({"a": "1", "b": "2"})), labels(json!({"b": "2"})), labels(json!({"b": "2"}))),
        (
            json!({"metadata": {"labels": {"a": "1"}, "name": "x"}}),
            json!({"metadata": {"name": "x"}}),
            json!({"metadata": {"name": "x"}}),
        ),
        // Elements of a list by key, of a set; atomic ones as a whole.
        (container(&["a", "b"]), container(&["b"]), container(&["b"])),
        (
            json!({"metadata": {"finalizers": ["x/a", "x/b"]}}),
            json!({"metadata": {"finalizers": ["x/b"]}}),
            json!({"metadata": {"finalizers": ["x/b"]}}),
        ),
        (
            spec(json!({"tolerations": [{"key": "a"}], "hostname": "h"})),
            spec(json!({"hostname": "h"})),
            spec(json!({"hostname": "h"})),
        ),
        // A field of an element that stays.
        (
            spec(json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}, {"containerPort": 81}]}]})),
            spec(json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 81}]}]})),
            spec(json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 81}]}]})),
        ),
        // One member of a union instead of another.
        (
            spec(json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]})),
            spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})),
            spec(json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]})),
        ),
    ] {
        let mut story = Story::of("core.v1.Pod");
        story.apply("one", first);
        story.apply("one", second.clone());
        assert_eq!(Value::Object(story.object.0.clone()), end, "{second}");
    }
}

#[test]
fn what_others_own_stays() {
    let mut story = Story::of("core.v1.ConfigMap");
    story.apply("one", json!({"data": {"a": "1", "b": "2"}}));
    story.apply("two", json!({"data": {"b": "2", "c": "3"}}));
    // Shared while the values are equal.
    let shared = json!({"one": {"f:data": {"f:a": {}, "f:b": {}}}, "two": {"f:data": {"f:b": {}, "f:c": {}}}});
    story.ends(&json!({"data": {"a": "1", "b": "2", "c": "3"}}), &shared);
    story.apply("one", json!({"data": {"a": "1"}}));
    story.ends(
        &json!({"data": {"a": "1", "b": "2", "c": "3"}}),
        &json!({"one": {"f:data": {"f:a": {}}}, "two": {"f:data": {"f:b": {}, "f:c": {}}}}),
    );
    story.apply("two", json!({}));
    story.ends(&json!({"data": {"a": "1"}}), &json!({"one": {"f:data": {"f:a": {}}}}));
    // What an update wrote beside what was applied stays; an element that was applied goes with all that is in it.
    let mut story = Story::of("core.v1.Pod");
    story.apply("one", json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}}));
    let edited = json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"hostname": "h", "containers": [{"name": "a", "image": "x", "tty": true}]}});
    story.update("two", edited);
    story.apply("one", json!({"metadata": {"annotations": {"a": "b"}}}));
    story.ends(
        &json!({"metadata": {"annotations": {"a": "b"}, "labels": {"b": "1"}}, "spec": {"hostname": "h"}}),
        &json!({
            "one": {"f:metadata": {"f:annotations": {"f:a": {}}}},
            "~two": {"f:metadata": {"f:labels": {"f:b": {}}}, "f:spec": {"f:hostname": {}}},
        }),
    );
}

#[test]
fn an_apply_that_changes_nothing_says_so() {
    let mut story = Story::of("core.v1.Pod");
    let config = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
    assert_eq!(story.apply_with("one", config.clone(), false), Ok(true));
    assert_eq!(story.apply_with("one", config.clone(), false), Ok(false));
    assert_eq!(story.apply_with("two", config, false), Ok(false));
    assert_eq!(story.managed.entries.len(), 2);
}

#[test]
fn conflicts_in_upstreams_words() {
    let ours = json!({"spec": {"replicas": 1, "minReadySeconds": 1}});
    for (updates, config, message) in [
        (false, json!({"spec": {"replicas": 2}}), "Apply failed with 1 conflict: conflict with \"one\": .spec.replicas"),
        (
            false,
            json!({"spec": {"replicas": 2, "minReadySeconds": 2}}),
            "Apply failed with 2 conflicts: conflicts with \"one\":\n- .spec.minReadySeconds\n- .spec.replicas",
        ),
        (true, json!({"spec": {"replicas": 2}}), "Apply failed with 1 conflict: conflict with \"one\" using v1: .spec.replicas"),
        (true, json!({"spec": {"paused": true, "replicas": 1}}), ""),
    ] {
        let mut story = Story::of("apps.v1.Deployment");
        story.apply("zero", json!({"spec": {"revisionHistoryLimit": 1}}));
        if updates {
            story.update("one", json!({"spec": {"replicas": 1, "minReadySeconds": 1, "revisionHistoryLimit": 1}}));
        } else {
            story.apply("one", ours.clone());
        }
        let outcome = story.apply_with("two", config.clone(), false);
        assert_eq!(outcome.err().unwrap_or_default(), message);
        story.apply_with("two", config, true).unwrap();
    }
    let mut story = Story::of("core.v1.Service");
    story.apply("one", json!({"spec": {"ports": [{"port": 80, "targetPort": 1}]}}));
    let said = story.apply_with("two", json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 2}]}}), false);
    let expected = r#"Apply failed with 1 conflict: conflict with "one": .spec.ports[port=80,protocol="TCP"].targetPort"#;
    assert_eq!(said.unwrap_err(), expected);
    let mut scaled = manager("hpa", Operation::Update);
    scaled.subresource = "scale".to_owned();
    assert_eq!(scaled.to_string(), r#""hpa" with subresource "scale" using v1"#);
}

#[test]
fn force_takes_the_field_over() {
    let mut story = Story::of("apps.v1.Deployment");
    story.apply("one", json!({"spec": {"replicas": 1, "paused": true}}));
    story.apply_with("two", json!({"spec": {"replicas": 2}}), true).unwrap();
    story.ends(
        &json!({"spec": {"replicas": 2, "paused": true}}),
        &json!({"one": {"f:spec": {"f:paused": {}}}, "two": {"f:spec": {"f:replicas": {}}}}),
    );
}

#[test]
fn a_change_is_its_writers() {
    let mut story = Story::of("apps.v1.Deployment");
    story.apply("one", json!({"metadata": {"labels": {"a": "1", "b": "1"}}, "spec": {"replicas": 1}}));
    story.update("edit", json!({"metadata": {"labels": {"b": "1"}, "generation": 2}, "spec": {"replicas": 3, "paused": true}}));
    let owners =
        json!({"one": {"f:metadata": {"f:labels": {"f:b": {}}}}, "~edit": {"f:spec": {"f:paused": {}, "f:replicas": {}}}});
    assert_eq!(story.owners(), owners);
    // A write that changes nothing owns nothing.
    let same = Value::Object(story.object.0.clone());
    story.update("other", same);
    assert_eq!(story.owners(), owners);
    // What an element of a list becomes, and the list's other elements.
    let mut story = Story::of("core.v1.Pod");
    story.apply("one", json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]}}));
    story.update("edit", json!({"spec": {"containers": [{"name": "a", "image": "y"}, {"name": "c", "image": "x"}]}}));
    let whole = json!({".": {}, "f:image": {}, "f:name": {}});
    assert_eq!(
        story.owners(),
        json!({
            "one": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}}}}},
            "~edit": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {"f:image": {}}, "k:{\"name\":\"c\"}": whole}}},
        })
    );
}

#[test]
fn updaters_are_no_more_than_ten() {
    let mut story = Story::of("core.v1.ConfigMap");
    story.apply("one", json!({"data": {"x": "1"}}));
    let mut data = json!({"x": "1"});
    for number in 0..15 {
        data[format!("k{number}")] = json!("1");
        story.update(&format!("w{number:02}"), json!({"data": data}));
    }
    let names: Vec<&str> = story.managed.entries.iter().map(|entry| entry.manager.name.as_str()).collect();
    assert_eq!(names.len(), 11, "{names:?}");
    assert!(names.contains(&"ancient-changes") && names.contains(&"w14"), "{names:?}");
    let all = story.managed.entries.iter().fold(Set::default(), |all, entry| all.union(&entry.fields));
    assert_eq!(all.paths().len(), 16);
}

#[test]
fn what_was_there_before_the_first_apply() {
    let rule = Rule::of_object(Some("io.k8s.api.apps.v1.Deployment"));
    let live = |annotations: Value| {
        object(json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "uid": "u", "annotations": annotations},
            "spec": {"replicas": 3, "minReadySeconds": 5, "revisionHistoryLimit": 10}, "status": {"replicas": 3},
        }))
    };
    let last = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 1, "minReadySeconds": 5}});
    let writer = manager("x", Operation::Update);
    let reset = Set::of(&[&["status"]]);
    let owners = |live: &Object| {
        let complete = |config: &mut Object| config.set(&["spec", "revisionHistoryLimit"], 10);
        let managed = first_owners(live, rule, &writer, &reset, NOW, complete);
        managed.entries.into_iter().map(|entry| (entry.manager.name, entry.fields)).collect::<Vec<_>>()
    };
    let found = owners(&live(json!({"a": "b"})));
    let annotations = json!({".": {}, "f:a": {}});
    let spec = json!({".": {}, "f:minReadySeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}});
    let all = json!({"f:metadata": {"f:annotations": annotations}, "f:spec": spec});
    assert_eq!(
        found.iter().map(|(name, set)| (name.as_str(), set.to_value())).collect::<Vec<_>>(),
        [("before-first-apply", all)]
    );
    // What `kubectl apply` applied is its own, with what was defaulted for it; what changed since is not.
    let found = owners(&live(json!({LAST_APPLIED: last.to_string()})));
    assert_eq!(found[0].0, "kubectl-client-side-apply");
    let spec = json!({"f:minReadySeconds": {}, "f:revisionHistoryLimit": {}});
    let annotation = format!("f:{LAST_APPLIED}");
    assert_eq!(found[0].1.to_value(), json!({"f:metadata": {"f:annotations": {annotation: {}}}, "f:spec": spec}));
    assert_eq!(found[1].1.to_value()["f:spec"], json!({".": {}, "f:replicas": {}}));
}

#[test]
fn kubectl_goes_on_from_its_own_annotation() {
    let last = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "1", "y": "1"}});
    let mut story = Story::of("core.v1.ConfigMap");
    let start = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "a", "annotations": {LAST_APPLIED: last.to_string()}}, "data": {"x": "1", "y": "changed"}});
    story.update("kubectl-client-side-apply", start.clone());
    let config =
        |x: &str, y: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": x, "y": y}});
    // Only fields that still are as they were applied, and only for kubectl.
    assert!(story.apply_with("kubectl", config("2", "2"), false).unwrap_err().ends_with(": .data.y"));
    assert!(story.apply_with("other", config("2", "changed"), false).unwrap_err().ends_with(": .data.x"));
    story.apply("kubectl", config("2", "changed"));
    let text = story.object.annotation(LAST_APPLIED).unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), config("2", "changed"));
}

#[test]
fn resets_do_not_count() {
    let mut story = Story::of("apps.v1.Deployment");
    story.reset = Set::of(&[&["status"]]);
    story.apply("one", json!({"spec": {"replicas": 1}, "status": {"replicas": 1}}));
    assert_eq!(story.owners(), json!({"one": {"f:spec": {"f:replicas": {}}}}));
}

#[test]
fn refuses_what_the_type_does_not_have() {
    for (config, why) in [
        (json!({"spec": {"foo": 1}}), ".spec.foo: field not declared in schema"),
        (
            json!({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}),
            ".spec.containers: duplicate entries for key [name=\"a\"]",
        ),
        (
            json!({"spec": {"containers": [{"image": "a"}]}}),
            ".spec.containers: element 0: associative list with keys has an element that omits all key fields [\"name\"] (and doesn't have default values for any key fields)",
        ),
        (
            json!({"metadata": {"finalizers": [{}]}}),
            ".metadata.finalizers: element 0: associative list without keys has an element that's a map type",
        ),
        (json!({"spec": []}), ".spec: expected map, got []"),
    ] {
        let mut story = Story::of("core.v1.Pod");
        assert_eq!(story.apply_with("one", config, false).unwrap_err(), why);
    }
}

#[test]
fn kinds_without_a_type_are_taken_as_they_look() {
    let mut story = Story::of("none.v1.None");
    story.apply("one", json!({"metadata": {"finalizers": ["x/a"]}, "spec": {"a": {"b": 1}, "list": [1]}}));
    story.apply("two", json!({"metadata": {"finalizers": ["x/b"]}, "spec": {"a": {"c": 1}}}));
    let said = story.apply_with("two", json!({"spec": {"list": [2]}}), false).unwrap_err();
    assert!(said.ends_with("conflict with \"one\": .spec.list"), "{said}");
    let all = json!({"metadata": {"finalizers": ["x/a", "x/b"]}, "spec": {"a": {"b": 1, "c": 1}, "list": [1]}});
    assert_eq!(Value::Object(story.object.0.clone()), all);
    story.apply("one", json!({"spec": {"a": {"b": 1}}}));
    assert_eq!(Value::Object(story.object.0), json!({"metadata": {"finalizers": ["x/b"]}, "spec": {"a": {"b": 1, "c": 1}}}));
}

#[test]
fn reads_and_writes_the_list() {
    let list = json!([
        {"manager": "b", "operation": "Apply", "apiVersion": "v1", "time": NOW, "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:x": {}}}},
        {"manager": "a", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:y": {}}}},
        {"manager": "a", "operation": "Update", "apiVersion": "v1", "time": NOW, "fieldsType": "FieldsV1", "fieldsV1": {"f:status": {}}, "subresource": "status"},
    ]);
    let managed = Managed::from_value(&list).unwrap();
    assert_eq!(managed.to_value(), list);
    let mut turned = managed.clone();
    turned.entries.reverse();
    assert_eq!(turned.to_value(), list);
    turned.entries[0].time = None;
    assert!(turned.is_same_but_times(&managed) && !turned.is_same_but_times(&Managed::default()));
    for (sent, wish) in [
        (json!(null), Wish::Keep),
        (json!([]), Wish::Clear),
        (json!([{}]), Wish::Clear),
        (json!([{"manager": "a"}]), Wish::Keep),
        (list.clone(), Wish::Set(managed)),
    ] {
        assert_eq!(Managed::wish(Some(&sent)), wish, "{sent}");
    }
}
