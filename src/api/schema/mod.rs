//! The built-in types: every field with its shape, protobuf tag, patch strategy and list type.
//!
//! The table is `assets/schema/types.tsv`, which `tests/generate` writes; it is read on first use. The descriptions stay
//! compressed until [`Descriptions::load`]: only OpenAPI needs them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

mod read;

pub use read::Descriptions;

/// The type of schemas in CustomResourceDefinitions.
pub const JSON_SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

static TABLE: OnceLock<Table> = OnceLock::new();

/// All types, sorted by name.
#[derive(Debug)]
struct Table {
    types: Vec<Type>,
    by_kind: BTreeMap<GroupVersionKind, TypeId>,
}

/// Index of a type in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u16);

/// The identity of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// "" for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
}

/// A type: a struct of the Kubernetes API.
#[derive(Debug)]
pub struct Type {
    /// `io.k8s.api.apps.v1.Deployment`
    pub name: &'static str,
    /// Server-side apply replaces it as a whole.
    pub is_atomic: bool,
    /// The kind whose type this is; `None` for parts of objects.
    pub kind: Option<GroupVersionKind>,
    /// Sorted by name.
    pub fields: Vec<Field>,
    /// Line in the table, where its description is.
    line: usize,
}

/// A field of a type.
#[derive(Debug)]
pub struct Field {
    /// The name in JSON.
    pub name: &'static str,
    pub shape: Shape,
    /// In the `required` list of the OpenAPI schema.
    pub is_required: bool,
    /// In protobuf, zero means absent: the field is no pointer in Go and is left out of JSON when empty.
    pub is_zero_absent: bool,
    /// In protobuf, the innermost list is a message with one field, `items`.
    pub is_wrapped: bool,
    /// Protobuf tags from the outermost inlined message inwards; empty for fields that protobuf does not have.
    pub tags: Vec<u32>,
    pub patch: PatchStrategy,
    pub list: ListType,
    /// Server-side apply replaces the map as a whole.
    pub is_atomic_map: bool,
    /// The default in the OpenAPI schema, "" for none.
    pub default: &'static str,
    line: usize,
}

/// What a value looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    String,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    Quantity,
    IntOrString,
    /// Any object (`RawExtension`).
    Raw,
    /// Any JSON value.
    Json,
    /// `FieldsV1`: the sets of managed fields.
    Fields,
    /// A JSON schema, or a boolean.
    PropsOrBool,
    /// A JSON schema, or a list of them.
    PropsOrArray,
    /// A JSON schema, or a list of strings.
    PropsOrStrings,
    List(Box<Shape>),
    /// Keys are strings.
    Map(Box<Shape>),
    Struct(TypeId),
}

/// How a strategic merge patch treats a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    pub is_merge: bool,
    pub is_replace: bool,
    pub retains_keys: bool,
    /// The key by which elements of a merged list are the same; "" for lists of scalars.
    pub merge_key: &'static str,
}

/// How server-side apply treats a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    /// Elements are the same if all these keys are equal.
    Map(Vec<&'static str>),
}

impl TypeId {
    /// The type.
    pub fn get(self) -> &'static Type {
        &table().types[usize::from(self.0)]
    }
}

impl Type {
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|at| &self.fields[at])
    }

    /// The last part of the name, which is that of the Go struct: `DeploymentSpec`.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The struct with its package, as decode errors name it: `v1.DeploymentSpec`.
    pub fn go_name(&self) -> String {
        let mut parts = self.name.rsplit('.');
        let (name, package) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        format!("{package}.{name}")
    }

    /// Whether objects of this type have `metadata` of their own.
    pub fn has_metadata(&self) -> bool {
        self.kind.is_some() && self.field("metadata").is_some()
    }
}

impl Shape {
    /// The struct that this is, or that the elements of this list or map are.
    pub fn target(&self) -> Option<&'static Type> {
        match self {
            Self::Struct(id) => Some(id.get()),
            Self::List(inner) | Self::Map(inner) => inner.target(),
            _ => None,
        }
    }

    /// The struct that this is itself.
    pub fn as_struct(&self) -> Option<&'static Type> {
        match self {
            Self::Struct(id) => Some(id.get()),
            _ => None,
        }
    }

    /// The type of Go that decode errors name: `int32`, `v1.Container`.
    pub fn go_name(&self) -> String {
        match self {
            Self::String | Self::Bytes | Self::Quantity | Self::IntOrString | Self::Time | Self::MicroTime => "string".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Int32 => "int32".to_owned(),
            Self::Int64 => "int64".to_owned(),
            Self::Double => "float64".to_owned(),
            Self::Raw | Self::Json | Self::Fields => "map[string]interface {}".to_owned(),
            Self::PropsOrBool | Self::PropsOrArray | Self::PropsOrStrings => "v1.JSONSchemaProps".to_owned(),
            Self::List(inner) => format!("[]{}", inner.go_name()),
            Self::Map(inner) => format!("map[string]{}", inner.go_name()),
            Self::Struct(id) => id.get().go_name(),
        }
    }
}

impl fmt::Display for GroupVersionKind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.group.is_empty() { "" } else { "/" };
        write!(out, "{}{slash}{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// The type of that name (`io.k8s.api.core.v1.Pod`).
pub fn get(name: &str) -> Option<&'static Type> {
    id(name).map(TypeId::get)
}

/// The type of a kind, group "" for core. The kinds that every group has (`DeleteOptions`, `WatchEvent`) are found in each.
pub fn for_kind(group: &str, version: &str, kind: &str) -> Option<&'static Type> {
    match kind {
        "DeleteOptions" | "WatchEvent" | "Status" => get(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")),
        _ => {
            let of_kind = |entry: &&Type| {
                entry.kind.is_some_and(|found| (found.group, found.version, found.kind) == (group, version, kind))
            };
            table().by_kind.values().map(|id| id.get()).find(of_kind)
        }
    }
}

/// The type of an object with this `apiVersion` and `kind`.
pub fn for_gvk(api_version: &str, kind: &str) -> Option<&'static Type> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    for_kind(group, version, kind)
}

/// All types, in order of their names.
pub fn all() -> &'static [Type] {
    &table().types
}

fn id(name: &str) -> Option<TypeId> {
    let at = table().types.binary_search_by(|found| found.name.cmp(name)).ok()?;
    u16::try_from(at).ok().map(TypeId)
}

fn table() -> &'static Table {
    TABLE.get_or_init(read::table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, field: &str) -> &'static Field {
        get(name).unwrap().field(field).unwrap()
    }

    #[test]
    fn finds_types_and_fields() {
        let spec = field("io.k8s.api.apps.v1.Deployment", "spec");
        assert_eq!(spec.shape.as_struct().unwrap().short_name(), "DeploymentSpec");
        assert_eq!(for_gvk("apps/v1", "Deployment").unwrap().name, "io.k8s.api.apps.v1.Deployment");
        assert_eq!(for_gvk("v1", "PodList").unwrap().field("items").unwrap().shape.target().unwrap().short_name(), "Pod");
        assert_eq!(for_gvk("batch/v1", "DeleteOptions").unwrap().short_name(), "DeleteOptions");
        assert!(for_gvk("apps/v2", "Deployment").is_none() && get("Pod").is_none());
        assert_eq!(field("io.k8s.api.core.v1.Secret", "data").shape, Shape::Map(Box::new(Shape::Bytes)));
    }

    #[test]
    fn knows_the_facts_of_lists() {
        for (name, path, merge_key, list) in [
            ("core.v1.PodSpec", "containers", "name", "map:name"),
            ("core.v1.PodSpec", "tolerations", "", "atomic"),
            ("core.v1.PodSpec", "topologySpreadConstraints", "topologyKey", "map:topologyKey,whenUnsatisfiable"),
            ("core.v1.PodSpec", "volumes", "name", "map:name"),
            ("core.v1.Container", "ports", "containerPort", "map:containerPort,protocol"),
            ("core.v1.Container", "args", "", "atomic"),
            ("core.v1.PodStatus", "hostIPs", "ip", "atomic"),
            ("core.v1.ServiceSpec", "ports", "port", "map:port,protocol"),
            ("core.v1.ServiceAccount", "imagePullSecrets", "", "atomic"),
            ("batch.v1.JobStatus", "conditions", "type", "atomic"),
            ("discovery.v1.Endpoint", "addresses", "", "set"),
            ("certificates.v1.CertificateSigningRequestStatus", "conditions", "", "map:type"),
        ] {
            let field = field(&format!("io.k8s.api.{name}"), path);
            let found = match &field.list {
                ListType::Atomic => "atomic".to_owned(),
                ListType::Set => "set".to_owned(),
                ListType::Map(keys) => format!("map:{}", keys.join(",")),
            };
            assert_eq!((field.patch.merge_key, found.as_str()), (merge_key, list), "{name}.{path}");
            assert_eq!(field.patch.is_merge, !merge_key.is_empty(), "{name}.{path}");
        }
        assert!(field("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers").patch.is_merge);
        assert!(field("io.k8s.api.core.v1.PodSpec", "volumes").patch.retains_keys);
        assert!(field("io.k8s.api.apps.v1.DeploymentSpec", "strategy").patch.retains_keys);
        assert!(field("io.k8s.api.policy.v1.PodDisruptionBudgetSpec", "selector").patch.is_replace);
        assert!(field("io.k8s.api.core.v1.PodSpec", "nodeSelector").is_atomic_map);
        assert!(get("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap().is_atomic);
    }

    #[test]
    fn knows_protobuf_tags() {
        for (name, path, tags) in [
            ("core.v1.Pod", "spec", &[2][..]),
            ("core.v1.Volume", "secret", &[2, 6]),
            ("core.v1.Probe", "httpGet", &[1, 2]),
            ("core.v1.ConfigMapKeySelector", "name", &[1, 1]),
            ("admissionregistration.v1.NamedRuleWithOperations", "apiGroups", &[2, 2, 1]),
            ("networking.v1.IngressRule", "http", &[2, 1]),
        ] {
            assert_eq!(field(&format!("io.k8s.api.{name}"), path).tags, tags, "{name}.{path}");
        }
    }

    #[test]
    fn describes() {
        let descriptions = Descriptions::load();
        let deployment = get("io.k8s.api.apps.v1.Deployment").unwrap();
        assert_eq!(descriptions.of_type(deployment), "Deployment enables declarative updates for Pods and ReplicaSets.");
        let spec = deployment.field("spec").unwrap();
        assert_eq!(descriptions.of_field(spec), "Specification of the desired behavior of the Deployment.");
        assert!(descriptions.of_type(get("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1").unwrap()).contains("\n\n"));
    }
}
