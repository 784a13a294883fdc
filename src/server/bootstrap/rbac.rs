//! Reads `assets/bootstrap/rbac.conf`, the table of the roles and bindings that every cluster has, into objects.

use std::collections::BTreeMap;

use serde_json::{Value, json};

const TABLE: &str = include_str!("../../../assets/bootstrap/rbac.conf");
const GROUP: &str = "rbac.authorization.k8s.io";
const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
/// Prefix of the roles that are bound to the service account of a controller.
const CONTROLLER: &str = "system:controller:";

/// A role of the table.
#[derive(Debug, Default)]
struct Role {
    namespace: String,
    name: String,
    /// Aggregates that it is part of: `admin`, `edit`, `view`.
    part_of: Vec<String>,
    /// The aggregate that it is made of.
    made_of: Option<String>,
    rules: Vec<Value>,
}

/// Why the table does not parse; a test makes sure that it does.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the table of roles: {text:?}")]
pub struct TableError {
    line: usize,
    text: String,
}

/// All objects of the table, each with `kind` and `apiVersion`.
///
/// # Errors
/// [`TableError`], which a test excludes.
pub fn objects() -> Result<Vec<Value>, TableError> {
    parse(TABLE)
}

fn parse(table: &str) -> Result<Vec<Value>, TableError> {
    let (mut roles, mut bindings): (Vec<Role>, Vec<Value>) = (Vec::new(), Vec::new());
    for (at, line) in table.lines().enumerate() {
        let wrong = || TableError { line: at + 1, text: line.to_owned() };
        let words: Vec<&str> = line.split_whitespace().collect();
        let (namespace, words) = match words.as_slice() {
            ["in", namespace, rest @ ..] => (*namespace, rest),
            all => ("", all),
        };
        match words {
            [] => {}
            [first, ..] if first.starts_with('#') => {}
            ["role", name, labels @ ..] => {
                let mut role = Role { namespace: namespace.to_owned(), name: (*name).to_owned(), ..Role::default() };
                for label in labels {
                    match label.split_at_checked(1) {
                        Some(("+", part)) => role.part_of.push(part.to_owned()),
                        Some(("<", whole)) => role.made_of = Some(whole.to_owned()),
                        _ => return Err(wrong()),
                    }
                }
                roles.push(role);
            }
            ["bind", name, subjects @ ..] => bindings.push(binding(namespace, name, &subjects.concat()).ok_or_else(wrong)?),
            rule => {
                let rule = self::rule(rule).ok_or_else(wrong)?;
                roles.last_mut().ok_or_else(wrong)?.rules.push(rule);
            }
        }
    }
    let controllers = roles.iter().filter(|role| role.namespace.is_empty());
    let bound: Vec<Value> = controllers
        .filter_map(|role| {
            let account = role.name.strip_prefix(CONTROLLER)?;
            binding("", &role.name, &format!("ServiceAccount:kube-system/{account}"))
        })
        .collect();
    let aggregates = aggregates(&roles);
    let roles = roles.iter().map(|role| role.object(&aggregates));
    Ok(roles.chain(bindings).chain(bound).collect())
}

/// The rules of each aggregate: what the roles that are part of it have, theirs of aggregates included.
fn aggregates(roles: &[Role]) -> BTreeMap<String, Vec<Value>> {
    let mut whole: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    // In the order in which one is part of the other.
    for name in ["view", "edit", "admin"] {
        let mut rules = Vec::new();
        for role in roles.iter().filter(|role| role.part_of.iter().any(|part| part == name)) {
            let of_parts = role.made_of.as_ref().and_then(|made_of| whole.get(made_of)).cloned().unwrap_or_default();
            rules.extend(role.rules.iter().cloned().chain(of_parts));
        }
        whole.insert(name.to_owned(), rules);
    }
    whole
}

fn split(list: &str) -> Vec<String> {
    let expanded = list.split(',').flat_map(|word| match word {
        "read" => READ.split(','),
        "write" => WRITE.split(','),
        other => other.split(','),
    });
    expanded.map(|word| if word == "core" { String::new() } else { word.to_owned() }).collect()
}

fn rule(words: &[&str]) -> Option<Value> {
    match words {
        ["url", paths, verbs] => Some(json!({"nonResourceURLs": split(paths), "verbs": split(verbs)})),
        [groups, resources, verbs] => {
            Some(json!({"apiGroups": split(groups), "resources": split(resources), "verbs": split(verbs)}))
        }
        [groups, resources, verbs, names] => Some(json!({
            "apiGroups": split(groups), "resources": split(resources), "verbs": split(verbs), "resourceNames": split(names),
        })),
        _ => None,
    }
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

/// A binding `NAME` or `NAME=ROLE` to subjects.
fn binding(namespace: &str, name: &str, subjects: &str) -> Option<Value> {
    let (name, role) = name.split_once('=').unwrap_or((name, name));
    let mut list = Vec::new();
    for subject in subjects.split(',').filter(|subject| !subject.is_empty()) {
        let (kind, who) = subject.split_once(':')?;
        list.push(match who.split_once('/') {
            Some((namespace, account)) => json!({"kind": kind, "name": account, "namespace": namespace}),
            None => json!({"kind": kind, "name": who, "apiGroup": GROUP}),
        });
    }
    let (kind, role_kind) = if namespace.is_empty() { ("ClusterRoleBinding", "ClusterRole") } else { ("RoleBinding", "Role") };
    let mut object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata(namespace, name),
        "roleRef": {"apiGroup": GROUP, "kind": role_kind, "name": role},
    });
    if !list.is_empty() {
        object["subjects"] = Value::Array(list);
    }
    Some(object)
}

impl Role {
    fn object(&self, aggregates: &BTreeMap<String, Vec<Value>>) -> Value {
        let kind = if self.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let mut object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": kind,
            "metadata": metadata(&self.namespace, &self.name),
            "rules": self.rules,
        });
        for part in &self.part_of {
            object["metadata"]["labels"][format!("{GROUP}/aggregate-to-{part}")] = json!("true");
        }
        if let Some(whole) = &self.made_of {
            let label = format!("{GROUP}/aggregate-to-{whole}");
            object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
            object["rules"] = json!(aggregates.get(whole));
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        let objects = objects().unwrap();
        let named = |kind: &str, name: &str| {
            objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap()
        };
        assert_eq!(named("ClusterRole", "cluster-admin")["rules"][1], json!({"nonResourceURLs": ["*"], "verbs": ["*"]}));
        let reader = named("Role", "extension-apiserver-authentication-reader");
        assert_eq!(reader["rules"][0]["resourceNames"], json!(["extension-apiserver-authentication"]));
        assert_eq!(reader["rules"][0]["apiGroups"], json!([""]));
        let count = |name: &str| named("ClusterRole", name)["rules"].as_array().unwrap().len();
        assert_eq!(count("edit"), count("system:aggregate-to-edit") + count("view"));
        assert_eq!(count("admin"), count("system:aggregate-to-admin") + count("edit"));
        let binding = named("ClusterRoleBinding", "system:controller:deployment-controller");
        let account = json!({"kind": "ServiceAccount", "name": "deployment-controller", "namespace": "kube-system"});
        assert_eq!(binding["subjects"], json!([account]));
        // Every binding's role is in the table, and no two objects have one name.
        let mut names = std::collections::HashSet::new();
        for object in &objects {
            let key =
                (object["kind"].to_string(), object["metadata"]["namespace"].to_string(), object["metadata"]["name"].to_string());
            assert!(names.insert(key.clone()), "{key:?} stands twice");
            if let Some(role) = object["roleRef"]["name"].as_str() {
                named(object["roleRef"]["kind"].as_str().unwrap(), role);
            }
        }
        assert!(names.len() > 120, "{}", names.len());
    }

    #[test]
    fn wrong_lines_are_told() {
        assert_eq!(parse("role a\n  core pods\n"), Err(TableError { line: 2, text: "  core pods".to_owned() }));
        assert!(parse("  core pods get\n").is_err());
        assert!(parse("bind a nobody\n").is_err());
    }
}
