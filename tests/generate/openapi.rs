//! Reads types from the sources of k8s-openapi: the `json_schema!` of each type, its `Resource` and its merge strategies.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

/// A field of a type, with everything that the table tells of it.
#[derive(Debug, Clone, Default)]
pub struct Field {
    pub shape: String,
    pub required: bool,
    pub description: String,
    pub tags: Vec<u32>,
    /// A zero on the wire means absent.
    pub zero_is_absent: bool,
    /// The protobuf form of the (innermost) list is a message with `items`.
    pub wrapped: bool,
    pub patch_strategy: String,
    pub patch_key: String,
    pub list_type: String,
    pub list_keys: Vec<String>,
    pub map_type: String,
    pub default: String,
}

/// A type.
#[derive(Debug, Clone, Default)]
pub struct Type {
    pub description: String,
    pub fields: BTreeMap<String, Field>,
    pub atomic: bool,
    /// `group/version/kind`, group "" for core.
    pub gvk: Option<String>,
    pub list_kind: Option<String>,
}

pub type Types = BTreeMap<String, Type>;

const SPECIALS: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "int-or-string"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "micro-time"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "fields"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", "raw"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "raw"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", "json"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", "props-or-bool"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", "props-or-array"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray", "props-or-strings"),
];

/// All types of stable versions below a folder of generated sources.
pub fn read(folder: &Path) -> Types {
    let reader = Reader::new();
    let mut types = Types::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some((name, found)) = reader.read(&source(&path)) {
                if !name.contains("alpha") && !name.contains("beta") {
                    types.insert(name, found);
                }
            }
        }
    }
    types
}

/// A source; that of a promoted group as it reads in the version that it is served in.
fn source(path: &Path) -> String {
    let source = fs::read_to_string(path).expect("a source");
    let folder = path.parent().expect("a folder");
    let is_promoted = super::facts::PROMOTED.iter().any(|group| folder.ends_with(format!("{group}/v1beta1")));
    if is_promoted { source.replace("v1beta1", "v1") } else { source }
}

/// Adds the list type of each kind that can be listed: k8s-openapi has one generic type for them.
pub fn add_lists(types: &mut Types) {
    let mut lists = Vec::new();
    for (name, kind) in types.iter() {
        let (Some(list_kind), Some(gvk)) = (&kind.list_kind, &kind.gvk) else { continue };
        let short = name.rsplit('.').next().expect("a name");
        let text = |description: &str| Field { shape: "string".into(), description: description.into(), ..Field::default() };
        let mut list = Type { description: format!("{list_kind} is a list of {short} objects."), ..Type::default() };
        list.gvk = Some(gvk.rsplit_once('/').map(|(group_version, _)| format!("{group_version}/{list_kind}")).expect("a gvk"));
        for field in ["apiVersion", "kind"] {
            list.fields.insert(field.into(), text(&kind.fields[field].description));
        }
        let metadata = Field {
            shape: "&io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta".into(),
            tags: vec![1],
            ..text(
                "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
            )
        };
        let metadata = Field { shape: "&io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta".into(), ..metadata };
        let items = Field { required: true, tags: vec![2], ..text(&format!("items is the list of {short} objects.")) };
        list.fields.insert("metadata".into(), metadata);
        list.fields.insert("items".into(), Field { shape: format!("[]&{name}"), ..items });
        lists.push((format!("{}{list_kind}", &name[..name.len() - short.len()]), list));
    }
    types.extend(lists);
}

struct Reader {
    described: Regex,
    reference: Regex,
    comma: Regex,
    merge: Regex,
    key: Regex,
    constant: Regex,
}

impl Reader {
    fn new() -> Self {
        let regex = |text| Regex::new(text).expect("a pattern");
        Self {
            described: regex(
                r#"\(\{\s*let mut schema_obj = __gen\.subschema_for::<([^>]+)>\(\);\s*schema_obj\.ensure_object\(\)\.insert\("description"\.into\(\), ("(?:[^"\\]|\\.)*")\.into\(\)\);\s*schema_obj\s*\}\)"#,
            ),
            reference: regex(r"\(?__gen\.subschema_for::<([^>]+)>\(\)\)?"),
            comma: regex(r",(\n\s*[}\]])"),
            merge: regex(r"(?s)merge_strategies::(list|map)::(\w+)\(\s*&mut self\.(\w+),(.*?);\n"),
            key: regex(r"lhs\.(\w+) == rhs"),
            constant: regex(r#"const (\w+): &'static str = "([^"]*)";"#),
        }
    }

    fn read(&self, source: &str) -> Option<(String, Type)> {
        let name = source.split_once("fn schema_name()")?.1.split('"').nth(1)?.to_owned();
        let json = source.split_once("json_schema!(")?.1.rsplit_once("})")?.0.to_owned() + "}";
        let json = self.described.replace_all(&json, r#"{"$$ref":"$1","description":$2}"#);
        let json = self.reference.replace_all(&json, r#"{"$$ref":"$1"}"#);
        let json = self.comma.replace_all(&json, "$1");
        let schema: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{name}: {error}\n{json}"));
        let mut found = Type { description: text(&schema["description"]), ..Type::default() };
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            // k8s-openapi requires metadata where upstream does not.
            let required =
                field != "metadata" && schema["required"].as_array().is_some_and(|names| names.iter().any(|name| name == field));
            let description = text(&property["description"]);
            found.fields.insert(field.clone(), Field { shape: shape(property), required, description, ..Field::default() });
        }
        let constants: BTreeMap<_, _> =
            self.constant.captures_iter(source).map(|found| found.extract().1).map(|[name, value]| (name, value)).collect();
        if let (Some(group), Some(version), Some(kind)) =
            (constants.get("GROUP"), constants.get("VERSION"), constants.get("KIND"))
        {
            found.gvk = Some(format!("{group}/{version}/{kind}"));
        }
        found.list_kind = constants.get("LIST_KIND").map(|kind| (*kind).to_owned());
        self.strategies(source, &mut found);
        Some((name, found))
    }

    fn strategies(&self, source: &str, found: &mut Type) {
        for (_, [container, strategy, field, rest]) in self.merge.captures_iter(source).map(|found| found.extract()) {
            let field = squash(field);
            let Some((_, field)) = found.fields.iter_mut().find(|(name, _)| squash(name) == field) else { continue };
            match (container, strategy) {
                ("map", "atomic") => field.map_type = "atomic".into(),
                ("list", "set" | "atomic") => field.list_type = strategy.into(),
                ("list", "map") => {
                    field.list_type = "map".into();
                    field.list_keys = self.key.captures_iter(rest).map(|key| key[1].trim_end_matches('_').to_owned()).collect();
                }
                _ => {}
            }
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

/// A name without case and punctuation, to compare Rust, JSON and protobuf names.
pub fn squash(name: &str) -> String {
    name.trim_start_matches("r#").chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn shape(property: &Value) -> String {
    if let Some(path) = property["$ref"].as_str() {
        let name = definition(path);
        let special = SPECIALS.iter().find(|(special, _)| *special == name);
        return special.map_or_else(|| format!("&{name}"), |(_, shape)| (*shape).to_owned());
    }
    match (property["type"].as_str().unwrap_or(""), property["format"].as_str().unwrap_or("")) {
        ("string", "byte") => "bytes".into(),
        ("string", "date-time") => "time".into(),
        ("string", _) => "string".into(),
        ("boolean", _) => "bool".into(),
        ("integer", "int64") => "int64".into(),
        ("integer", _) => "int32".into(),
        ("number", _) => "double".into(),
        ("array", _) => format!("[]{}", shape(&property["items"])),
        ("object", _) => format!("{{}}{}", shape(&property["additionalProperties"])),
        _ => panic!("a property of no known shape: {property}"),
    }
}

fn definition(path: &str) -> String {
    let path = path.trim_start_matches("crate::").replace("::", ".");
    format!(
        "io.k8s.{}",
        path.replacen("apiextensions_apiserver", "apiextensions-apiserver", 1).replacen("kube_aggregator", "kube-aggregator", 1)
    )
}
