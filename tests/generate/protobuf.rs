//! Reads protobuf tags from the sources of k8s-pb and joins them to the types by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use regex::Regex;

use super::facts;
use super::openapi::{Field, Types, squash};

/// A field of a message: its tag and the type as prost writes it.
pub struct MessageField {
    tag: u32,
    kind: String,
}

/// Messages by squashed `package.Name`, fields by squashed name.
pub type Messages = BTreeMap<String, BTreeMap<String, MessageField>>;

/// All messages below a folder.
pub fn read(root: &Path) -> Messages {
    let structure = Regex::new(r"(?m)^pub struct (\w+) \{\n((?s:.*?))^\}").expect("a pattern");
    let field = Regex::new(r#"(?s)#\[prost\(([^\]]*?)\btag = "(\d+)"\)\]\s*pub ([\w#]+):(.*?),\n"#).expect("a pattern");
    let mut messages = Messages::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let package = folder.strip_prefix(root).expect("below the root").to_string_lossy().replace('/', ".");
            let source = fs::read_to_string(&path).expect("a source");
            for (_, [name, body]) in structure.captures_iter(&source).map(|found| found.extract()) {
                let fields = field.captures_iter(body).map(|found| {
                    let kind = found[4].split_whitespace().collect::<String>();
                    (squash(&found[3]), MessageField { tag: found[2].parse().expect("a tag"), kind })
                });
                messages.insert(key(&package, name), fields.collect());
            }
        }
    }
    messages
}

fn key(package: &str, name: &str) -> String {
    format!("{}.{}", squash(package), squash(name))
}

/// Fills in the tags; returns the fields that have none.
pub fn join(types: &mut Types, messages: &Messages) -> Vec<String> {
    let mut missing = Vec::new();
    for (name, found) in types.iter_mut() {
        let (package, short) = name.trim_start_matches("io.k8s.").rsplit_once('.').expect("a package");
        let same = facts::SAME_AS.iter().find(|(from, _)| *from == package).map_or(package, |(_, other)| other);
        let packages = [package, same];
        let message =
            packages.iter().map(|package| key(package, short)).find(|key| messages.contains_key(key)).unwrap_or_default();
        for (field_name, field) in &mut found.fields {
            let known = facts::TAGS.iter().find(|(path, _)| path.rsplit_once('.') == Some((name, field_name)));
            match known {
                Some((_, 0)) => continue,
                Some((_, tag)) => field.tags = vec![*tag],
                None if field.tags.is_empty() => tag(messages, &message, &squash(field_name), field),
                None => {}
            }
            let in_envelope = matches!(field_name.as_str(), "apiVersion" | "kind");
            if field.tags.is_empty() && !in_envelope && !facts::NO_PROTOBUF.iter().any(|prefix| name.starts_with(prefix)) {
                missing.push(format!("{name}.{field_name}"));
            }
        }
    }
    missing
}

/// Finds a field in a message or in a message that Go inlines into it.
fn tag(messages: &Messages, message: &str, name: &str, field: &mut Field) {
    let Some(fields) = messages.get(message) else { return };
    if let Some(found) = fields.get(name) {
        field.tags = vec![found.tag];
        field.wrapped = found.kind.contains("ExtraValue") || found.kind.contains("Verbs");
        return;
    }
    for (inline, inner) in fields {
        if facts::INLINED.iter().any(|known| squash(known) == *inline) {
            let package = message.rsplit_once('.').expect("a package").0;
            let target = inner.kind.trim_end_matches('>').rsplit([':', '<']).next().expect("a type");
            tag(messages, &key(package, target), name, field);
            if !field.tags.is_empty() {
                field.tags.insert(0, inner.tag);
                return;
            }
        }
    }
}
