//! Request bodies in JSON and YAML, as one tree of values, with the keys that stood twice in a map.
//!
//! YAML is read as Go's clients mean it: `yes`, `no`, `on` and `off` are booleans, `0644` is octal, `<<` merges.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Options, Spanned};

/// Deepest nesting of a body.
const DEPTH_MAX: usize = 120;

/// A body that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// Of keys that stand twice, the last value.
    pub value: Value,
    /// In upstream's words, for `fieldValidation`: `duplicate field "spec.a"`, or `key "a" already set in map` for YAML.
    pub duplicates: Vec<String>,
}

/// Reads one YAML document.
///
/// # Errors
/// `error converting YAML to JSON: yaml: …`, for a 400.
pub fn to_value(bytes: &[u8]) -> Result<Parsed, String> {
    let wrong = |why: &dyn fmt::Display| format!("error converting YAML to JSON: yaml: {why}");
    let text = std::str::from_utf8(bytes).map_err(|_| wrong(&"invalid UTF-8"))?;
    let options: Options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        strict_booleans: false,
        with_snippet: false,
    };
    let mut reader = Reader::<Yaml>::new();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Node(&mut reader).deserialize(deserializer)
    })
    .map_err(|error| wrong(&error))?;
    let duplicates = match reader.duplicates.as_slice() {
        [] => Vec::new(),
        lines => vec![format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))],
    };
    Ok(Parsed { value, duplicates })
}

/// Reads one JSON document.
///
/// # Errors
/// The decoder's words, for a 400.
pub fn from_json(bytes: &[u8]) -> Result<Parsed, String> {
    let mut reader = Reader::<Json>::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node(&mut reader).deserialize(&mut deserializer).map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(Parsed { value, duplicates: reader.duplicates })
}

/// How a format reads keys: YAML tells the line.
trait Keys {
    fn next<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<(String, u64)>, A::Error>;
    fn duplicate(path: &str, name: &str, line: u64) -> String;
}

struct Json;
struct Yaml;

impl Keys for Json {
    fn next<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<(String, u64)>, A::Error> {
        Ok(map.next_key::<String>()?.map(|name| (name, 0)))
    }

    fn duplicate(path: &str, _name: &str, _line: u64) -> String {
        format!("duplicate field {path:?}")
    }
}

impl Keys for Yaml {
    fn next<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<(String, u64)>, A::Error> {
        Ok(map.next_key::<Spanned<String>>()?.map(|key| (key.value, key.referenced.line())))
    }

    fn duplicate(_path: &str, name: &str, line: u64) -> String {
        format!("line {line}: key {name:?} already set in map")
    }
}

/// Where the reader is, and what it met twice.
struct Reader<K> {
    duplicates: Vec<String>,
    path: String,
    depth: usize,
    keys: PhantomData<K>,
}

impl<K> Reader<K> {
    fn new() -> Self {
        Self { duplicates: Vec::new(), path: String::new(), depth: 0, keys: PhantomData }
    }

    /// Reads what is below a step of the path.
    fn below<T, E: de::Error>(&mut self, step: &str, read: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom("exceeded max depth"));
        }
        let length = self.path.len();
        if length > 0 && !step.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(step);
        self.depth += 1;
        let outcome = read(self);
        self.depth -= 1;
        self.path.truncate(length);
        outcome
    }
}

/// One value of the tree.
struct Node<'a, K>(&'a mut Reader<K>);

impl<'de, K: Keys> DeserializeSeed<'de> for Node<'_, K> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, K: Keys> Visitor<'de> for Node<'_, K> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom(format!("json: unsupported value: {value}")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = self.0.below(&format!("[{}]", values.len()), |reader| list.next_element_seed(Node(reader)))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some((name, line)) = K::next(&mut map)? {
            let is_duplicate = values.contains_key(&name);
            let value = self.0.below(&name, |reader| {
                if is_duplicate {
                    let duplicate = K::duplicate(&reader.path, &name, line);
                    reader.duplicates.push(duplicate);
                }
                map.next_value_seed(Node(reader))
            })?;
            values.insert(name, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_yaml_as_go_does() {
        for (text, value) in [
            ("a: yes", json!({"a": true})),
            ("a: off", json!({"a": false})),
            ("a: 0644", json!({"a": 420})),
            ("a: 0x10", json!({"a": 16})),
            ("a: '0644'", json!({"a": "0644"})),
            ("a: 1.5", json!({"a": 1.5})),
            ("a: ~\nb:", json!({"a": null, "b": null})),
            ("1: x\ntrue: z", json!({"1": "x", "true": "z"})),
            ("a: &x {b: 1}\nc: {<<: *x, d: 2}", json!({"a": {"b": 1}, "c": {"b": 1, "d": 2}})),
            ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
            ("{\"a\": [1, \"b\"]}", json!({"a": [1, "b"]})),
            ("a: 1Gi\nb: 100m\nc: nginx:1.14", json!({"a": "1Gi", "b": "100m", "c": "nginx:1.14"})),
            ("a: 2001-01-01T00:00:00Z", json!({"a": "2001-01-01T00:00:00Z"})),
        ] {
            assert_eq!(to_value(text.as_bytes()), Ok(Parsed { value, duplicates: Vec::new() }), "{text}");
        }
        for text in ["a: b: c", "a: [", "a: *x"] {
            assert!(to_value(text.as_bytes()).unwrap_err().starts_with("error converting YAML to JSON: yaml: "), "{text}");
        }
    }

    #[test]
    fn tells_duplicates() {
        let yaml = to_value(b"spec:\n  a: 1\n  a: 2\n").unwrap();
        assert_eq!(yaml.value, json!({"spec": {"a": 2}}));
        assert_eq!(yaml.duplicates, ["yaml: unmarshal errors:\n  line 3: key \"a\" already set in map"]);
        let parsed = from_json(br#"{"spec": {"a": 1, "l": [{"x": 1, "x": 2}], "a": 2}}"#).unwrap();
        assert_eq!(parsed.value, json!({"spec": {"a": 2, "l": [{"x": 2}]}}));
        assert_eq!(parsed.duplicates, ["duplicate field \"spec.l[0].x\"", "duplicate field \"spec.a\""]);
    }

    #[test]
    fn refuses_bad_json() {
        for text in ["", "{", "{} x", &"[".repeat(200)] {
            assert!(from_json(text.as_bytes()).is_err(), "{text}");
        }
    }
}
