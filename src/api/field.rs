//! Validation errors and the field paths in them, in the words of `apimachinery/pkg/util/validation/field`.

use std::fmt;

use serde_json::Value;

/// A path to a field: `spec.containers[0].image`, `metadata.labels[app]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(String);

impl Path {
    /// A path of one field.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The field below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// The element at `index` of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The value at `key` of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&str> for Path {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// What is wrong with a field. The variants and their texts are upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl Problem {
    /// The machine word used in `status.details.causes[].reason`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One validation error.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub problem: Problem,
    pub path: Path,
    pub value: Value,
    pub detail: String,
}

impl FieldError {
    fn new(problem: Problem, path: Path, value: Value, detail: impl Into<String>) -> Self {
        Self { problem, path, value, detail: detail.into() }
    }

    /// A value that is missing and must be there.
    pub fn required(path: Path, detail: impl Into<String>) -> Self {
        Self::new(Problem::Required, path, Value::Null, detail)
    }

    /// A value that is malformed or out of range.
    pub fn invalid(path: Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(Problem::Invalid, path, value.into(), detail)
    }

    /// A value that stands twice where it must stand once.
    pub fn duplicate(path: Path, value: impl Into<Value>) -> Self {
        Self::new(Problem::Duplicate, path, value.into(), "")
    }

    /// A value that names something that does not exist.
    pub fn not_found(path: Path, value: impl Into<Value>) -> Self {
        Self::new(Problem::NotFound, path, value.into(), "")
    }

    /// A value that is valid in form but not allowed here.
    pub fn forbidden(path: Path, detail: impl Into<String>) -> Self {
        Self::new(Problem::Forbidden, path, Value::Null, detail)
    }

    /// A value that is none of a fixed set.
    pub fn not_supported(path: Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut names: Vec<&str> = supported.to_vec();
        names.sort_unstable();
        Self::not_supported_as_listed(path, value, &names)
    }

    /// A value that is none of a fixed list, which upstream shows in an order of its own.
    pub fn not_supported_as_listed(path: Path, value: impl Into<Value>, names: &[&str]) -> Self {
        let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self::new(Problem::NotSupported, path, value.into(), detail)
    }

    /// A text that is too long.
    pub fn too_long(path: Path, max_bytes: usize) -> Self {
        Self::new(Problem::TooLong, path, Value::Null, format!("may not be more than {max_bytes} bytes"))
    }

    /// A list with too many elements.
    pub fn too_many(path: Path, actual: usize, max: usize) -> Self {
        Self::new(Problem::TooMany, path, actual.into(), format!("must have at most {max} items"))
    }

    /// The message without the path: what stands in `causes[].message`.
    pub fn body(&self) -> String {
        let text = self.problem.text();
        let head = match self.problem {
            Problem::Required | Problem::Forbidden | Problem::TooLong | Problem::Internal => text.to_owned(),
            _ => match &self.value {
                Value::Null => format!("{text}: null"),
                Value::String(value) => format!("{text}: {value:?}"),
                value => format!("{text}: {value}"),
            },
        };
        if self.detail.is_empty() { head } else { format!("{head}: {}", self.detail) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path, self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_upstreams() {
        let path = Path::new("spec").child("containers").index(0).child("image");
        assert_eq!(FieldError::required(path.clone(), "").to_string(), "spec.containers[0].image: Required value");
        assert_eq!(
            FieldError::invalid(path, "a b", "must not have spaces").to_string(),
            "spec.containers[0].image: Invalid value: \"a b\": must not have spaces"
        );
        let policy = FieldError::not_supported(Path::new("p"), "X", &["B", "A"]);
        assert_eq!(policy.to_string(), "p: Unsupported value: \"X\": supported values: \"A\", \"B\"");
    }
}
