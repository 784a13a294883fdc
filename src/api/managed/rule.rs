//! [`Rule`]: how a value is merged and owned: as a whole, field by field, or element by element.
//!
//! What `structured-merge-diff/schema` is to upstream, read from the table of types. A value that the table does not know is taken
//! as it looks: maps field by field, lists as a whole.

use serde_json::Value;

use super::element::{Element, Scalar};
use crate::api::schema::{self, Field, ListType, Shape, Type};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// How a value is treated.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    /// An object whose type is not known: only its metadata is.
    Object,
    /// Field by field.
    Struct(&'static Type),
    /// Key by key.
    Map(&'static Shape),
    /// A list whose elements are the same if these fields are equal.
    Keyed(&'static [&'static str], &'static Type),
    /// A list of scalars of which each is there once.
    Set,
    /// As a whole.
    Leaf,
    /// As it looks.
    Deduced,
}

impl Rule {
    /// The rule of objects of the type with this name (see [`Kind::schema`](crate::api::Kind::schema)).
    pub fn of_object(schema: Option<&str>) -> Self {
        schema.and_then(schema::get).map_or(Self::Object, Self::Struct)
    }

    fn of_field(field: &'static Field) -> Self {
        match (&field.shape, &field.list) {
            (Shape::List(_), ListType::Set) => Self::Set,
            (Shape::List(inner), ListType::Map(keys)) => inner.as_struct().map_or(Self::Leaf, |of| Self::Keyed(keys, of)),
            (Shape::Map(_), _) if field.is_atomic_map => Self::Leaf,
            (shape, _) => Self::of_shape(shape),
        }
    }

    fn of_shape(shape: &'static Shape) -> Self {
        match shape {
            Shape::Struct(id) if id.get().is_atomic => Self::Leaf,
            Shape::Struct(id) => Self::Struct(id.get()),
            Shape::Map(inner) => Self::Map(inner),
            Shape::Raw | Shape::Json | Shape::Fields => Self::Deduced,
            Shape::PropsOrBool | Shape::PropsOrArray | Shape::PropsOrStrings => Self::Deduced,
            _ => Self::Leaf,
        }
    }

    /// The rule of what a step leads to, and whether the step is a field that the type names.
    pub(super) fn child(self, element: &Element) -> (Self, bool) {
        match element {
            Element::Field(name) => self.field(name),
            _ => (self.item(), false),
        }
    }

    /// The rule of a field or of the value of a key, and whether the type names it.
    pub(crate) fn field(self, name: &str) -> (Self, bool) {
        match self {
            Self::Struct(of) => of.field(name).map_or((Self::Deduced, false), |field| (Self::of_field(field), true)),
            Self::Object => match name {
                "metadata" => (Self::of_object(Some(OBJECT_META)), true),
                "apiVersion" | "kind" => (Self::Leaf, true),
                _ => (Self::Deduced, false),
            },
            Self::Map(shape) => (Self::of_shape(shape), false),
            Self::Deduced => (Self::Deduced, false),
            Self::Keyed(..) | Self::Set | Self::Leaf => (Self::Leaf, false),
        }
    }

    /// The rule of the elements of a list.
    pub(crate) fn item(self) -> Self {
        match self {
            Self::Keyed(_, of) => Self::Struct(of),
            _ => Self::Leaf,
        }
    }

    /// Whether this value is taken as a map.
    pub(crate) fn is_map(self, value: &Value) -> bool {
        matches!(self, Self::Object | Self::Struct(_) | Self::Map(_) | Self::Deduced) && value.is_object()
    }

    /// Whether this value is taken as a list of elements that have an identity.
    pub(crate) fn is_list(self, value: &Value) -> bool {
        matches!(self, Self::Keyed(..) | Self::Set) && value.is_array()
    }

    /// Whether this value is owned as a whole. An absent or null map or list is not.
    pub(crate) fn is_leaf(self, value: &Value) -> bool {
        match self {
            Self::Leaf => true,
            Self::Deduced => !value.is_object(),
            _ => !value.is_null() && !self.is_map(value) && !self.is_list(value),
        }
    }

    /// The step to an element of a list.
    ///
    /// # Errors
    /// Upstream's words for an element that has no identity.
    pub(crate) fn element(self, item: &Value) -> Result<Element, String> {
        match (self, item) {
            (Self::Keyed(..), Value::Null) => Err("associative list with keys may not have a null element".to_owned()),
            (Self::Keyed(keys, of), Value::Object(map)) => {
                let value = |key: &str| map.get(key).cloned().or_else(|| default_of(of, key));
                let mut fields: Vec<_> =
                    keys.iter().filter_map(|key| value(key).map(|value| ((*key).to_owned(), Scalar(value)))).collect();
                if fields.is_empty() {
                    let names = keys.iter().map(|key| format!("{key:?}")).collect::<Vec<_>>().join(" ");
                    return Err(format!(
                        "associative list with keys has an element that omits all key fields [{names}] (and doesn't have default values for any key fields)"
                    ));
                }
                fields.sort();
                Ok(Element::Key(fields))
            }
            (Self::Keyed(..), _) => Err("associative list with keys may not have non-map elements".to_owned()),
            (_, Value::Null) => Err("associative list without keys has an element that's an explicit null".to_owned()),
            (_, Value::Object(_)) => Err("associative list without keys has an element that's a map type".to_owned()),
            (_, Value::Array(_)) => Err("not supported: associative list with lists as elements".to_owned()),
            (_, scalar) => Ok(Element::Value(Scalar(scalar.clone()))),
        }
    }
}

fn default_of(of: &Type, key: &str) -> Option<Value> {
    let field = of.field(key).filter(|field| !field.default.is_empty())?;
    Some(Value::String(field.default.to_owned()))
}
