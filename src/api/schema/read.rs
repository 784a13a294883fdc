//! Reads the table and the descriptions of the schema from their assets.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use super::{Field, GroupVersionKind, ListType, PatchStrategy, Shape, Table, Type, TypeId};

const TYPES: &str = include_str!("../../../assets/schema/types.tsv");
const DESCRIPTIONS: &[u8] = include_bytes!("../../../assets/schema/descriptions.txt.gz");

/// Reads all types. A line of a type starts with its name, the lines of its fields start with a tab.
pub fn table() -> Table {
    let names = TYPES.lines().filter(|line| !line.starts_with('\t')).filter_map(|line| line.split('\t').next());
    let ids: HashMap<&str, TypeId> = names.zip((0..).map(TypeId)).collect();
    let mut types: Vec<Type> = Vec::with_capacity(ids.len());
    for (line, text) in TYPES.lines().enumerate() {
        match text.strip_prefix('\t') {
            Some(text) => types.last_mut().into_iter().for_each(|last| last.fields.push(field(text, line, &ids))),
            None => types.push(structure(text, line)),
        }
    }
    let by_kind =
        (0..).map(TypeId).zip(&types).filter_map(|(id, found)| found.kind.map(|kind| (kind, id))).collect::<BTreeMap<_, _>>();
    Table { types, by_kind }
}

fn structure(text: &'static str, line: usize) -> Type {
    let mut columns = text.split('\t');
    let mut next = || columns.next().unwrap_or("");
    let (name, flags, kind) = (next(), next(), next());
    let mut parts = kind.split('/');
    let kind = match (parts.next(), parts.next(), parts.next()) {
        (Some(group), Some(version), Some(kind)) => Some(GroupVersionKind { group, version, kind }),
        _ => None,
    };
    Type { name, is_atomic: flags == "atomic", kind, fields: Vec::new(), line }
}

fn field(text: &'static str, line: usize, ids: &HashMap<&str, TypeId>) -> Field {
    let mut columns = text.split('\t');
    let mut next = || columns.next().unwrap_or("");
    let (name, shape_text, flags, tags, patch, list, default) = (next(), next(), next(), next(), next(), next(), next());
    let shape = shape(shape_text, ids);
    let is_atomic_map = list == "atomic" && matches!(shape, Shape::Map(_));
    let (strategies, merge_key) = patch.split_once(':').unwrap_or((patch, ""));
    let has = |wanted: &str| strategies.split(',').any(|strategy| strategy == wanted);
    Field {
        name,
        shape,
        is_required: flags.contains('r'),
        is_zero_absent: flags.contains('z'),
        is_wrapped: flags.contains('w'),
        tags: tags.split('.').filter_map(|tag| tag.parse().ok()).collect(),
        patch: PatchStrategy { is_merge: has("merge"), is_replace: has("replace"), retains_keys: has("retainKeys"), merge_key },
        list: match (list, list.strip_prefix("map:")) {
            (_, Some(keys)) => ListType::Map(keys.split(',').collect()),
            ("set", _) => ListType::Set,
            _ => ListType::Atomic,
        },
        is_atomic_map,
        default,
        line,
    }
}

fn shape(text: &str, ids: &HashMap<&str, TypeId>) -> Shape {
    if let Some(inner) = text.strip_prefix("[]") {
        return Shape::List(Box::new(shape(inner, ids)));
    }
    if let Some(inner) = text.strip_prefix("{}") {
        return Shape::Map(Box::new(shape(inner, ids)));
    }
    if let Some(id) = text.strip_prefix('&').and_then(|name| ids.get(name)) {
        return Shape::Struct(*id);
    }
    match text {
        "string" => Shape::String,
        "bool" => Shape::Bool,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "time" => Shape::Time,
        "micro-time" => Shape::MicroTime,
        "quantity" => Shape::Quantity,
        "int-or-string" => Shape::IntOrString,
        "raw" => Shape::Raw,
        "fields" => Shape::Fields,
        "props-or-bool" => Shape::PropsOrBool,
        "props-or-array" => Shape::PropsOrArray,
        "props-or-strings" => Shape::PropsOrStrings,
        _ => Shape::Json,
    }
}

/// The descriptions of all types and fields, unpacked: about 1 MB, to be dropped after use.
#[derive(Debug)]
pub struct Descriptions {
    lines: Vec<String>,
}

impl Descriptions {
    /// Unpacks the descriptions.
    pub fn load() -> Self {
        let mut text = String::new();
        let read = flate2::read::GzDecoder::new(DESCRIPTIONS).read_to_string(&mut text);
        debug_assert!(read.is_ok(), "the embedded descriptions are gzip of UTF-8");
        Self { lines: text.lines().map(unescape).collect() }
    }

    /// What a type is for; "" if upstream does not say.
    pub fn of_type(&self, of: &Type) -> &str {
        self.lines.get(of.line).map_or("", String::as_str)
    }

    /// What a field is for; "" if upstream does not say.
    pub fn of_field(&self, of: &Field) -> &str {
        self.lines.get(of.line).map_or("", String::as_str)
    }
}

fn unescape(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, true) => out.push(if chars.next() == Some('n') { '\n' } else { '\\' }),
            (c, false) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_and_list_is_understood() {
        for found in super::super::all() {
            assert!(found.fields.is_sorted_by_key(|field| field.name), "{}", found.name);
        }
        let known = TYPES.lines().filter_map(|line| line.strip_prefix('\t')).filter_map(|line| line.split('\t').nth(1));
        let ids = HashMap::new();
        for text in known.filter(|text| !text.contains('&')) {
            let leaf = text.trim_start_matches(['[', ']', '{', '}']);
            assert!(leaf == "json" || shape(leaf, &ids) != Shape::Json, "{text}");
        }
        for line in TYPES.lines().filter(|line| line.contains('&')) {
            let target = line.split('&').nth(1).and_then(|rest| rest.split('\t').next()).unwrap();
            assert!(super::super::get(target).is_some(), "{line}");
        }
    }
}
