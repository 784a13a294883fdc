//! [`Element`]: one step of a path to a field, as `fieldsV1` spells it (`f:`, `k:`, `v:`, `i:`).
//!
//! Follows `structured-merge-diff/fieldpath/{element,serialize-pe}.go`.

use std::cmp::Ordering;
use std::fmt;

use serde_json::{Map, Value};

/// A step from a value to one that it holds. The order is that of upstream: fields, keys, values, indices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A field of a struct, or a key of a map.
    Field(String),
    /// The element of a list whose fields have these values, sorted by name.
    Key(Vec<(String, Scalar)>),
    /// The element of a set.
    Value(Scalar),
    /// The element of a list at this place.
    Index(i64),
}

/// A value in a path: a number, text or truth value.
#[derive(Debug, Clone)]
pub struct Scalar(pub Value);

impl Element {
    /// A field.
    pub fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    /// Reads `f:spec`, `k:{"name":"a"}`, `v:"a"` or `i:0`; `None` for a kind of step that is not known.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let (kind, rest) = text.split_once(':').ok_or_else(|| format!("missing colon: {text}"))?;
        let json = || serde_json::from_str::<Value>(rest).map_err(|error| format!("{text}: {error}"));
        Ok(Some(match kind {
            "f" => Self::field(rest),
            "v" => Self::Value(Scalar(json()?)),
            "i" => Self::Index(rest.parse().map_err(|error| format!("{text}: {error}"))?),
            "k" => match json()? {
                Value::Object(map) => Self::Key(map.into_iter().map(|(name, value)| (name, Scalar(value))).collect()),
                _ => return Err(format!("{text}: not an object")),
            },
            _ => return Ok(None),
        }))
    }

    /// The text that [`parse`](Self::parse) reads.
    pub fn to_text(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let map: Map<String, Value> = fields.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect();
                format!("k:{}", Value::Object(map))
            }
            Self::Value(value) => format!("v:{}", value.0),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

/// As messages show it: `.spec`, `[name="a"]`, `[="a"]`, `[0]`.
impl fmt::Display for Element {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(out, ".{name}"),
            Self::Key(fields) => {
                let texts: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", value.0)).collect();
                write!(out, "[{}]", texts.join(","))
            }
            Self::Value(value) => write!(out, "[={}]", value.0),
            Self::Index(index) => write!(out, "[{index}]"),
        }
    }
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub fn path_text(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

impl Scalar {
    fn rank(&self) -> u8 {
        match self.0 {
            Value::Number(_) => 0,
            Value::String(_) => 1,
            Value::Bool(_) => 2,
            Value::Null => 3,
            Value::Array(_) | Value::Object(_) => 4,
        }
    }
}

impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scalar {}

impl PartialOrd for Scalar {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scalar {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Value::Number(one), Value::Number(two)) => match (one.as_i64(), two.as_i64()) {
                (Some(one), Some(two)) => one.cmp(&two),
                _ => one.as_f64().unwrap_or(f64::NAN).total_cmp(&two.as_f64().unwrap_or(f64::NAN)),
            },
            (Value::String(one), Value::String(two)) => one.cmp(two),
            (Value::Bool(one), Value::Bool(two)) => one.cmp(two),
            (one, two) => self.rank().cmp(&other.rank()).then_with(|| one.to_string().cmp(&two.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_survive_their_text() {
        for (text, shown) in [
            ("f:spec", ".spec"),
            ("f:a/b:c", ".a/b:c"),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"a""#, r#"[="a"]"#),
            ("v:1", "[=1]"),
            ("i:3", "[3]"),
        ] {
            let element = Element::parse(text).unwrap().unwrap();
            assert_eq!((element.to_text().as_str(), element.to_string().as_str()), (text, shown));
        }
        assert_eq!(Element::parse("z:a"), Ok(None));
        for wrong in ["spec", "k:1", "v:", "i:x"] {
            assert!(Element::parse(wrong).is_err(), "{wrong}");
        }
    }
}
