//! From protobuf to the JSON tree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Number, Value, json};

use super::wire::{Reader, Wire};
use super::{PREFIX, ProtoError};
use crate::api::schema::{self, Field, Shape, Type};

const DEPTH_MAX: usize = 100;

/// Decodes a message of a type.
pub(super) fn message(bytes: &[u8], of: &Type) -> Result<Map<String, Value>, ProtoError> {
    structure(bytes, of, DEPTH_MAX)
}

fn structure(bytes: &[u8], of: &Type, depth: usize) -> Result<Map<String, Value>, ProtoError> {
    let mut object = Map::new();
    fields(bytes, of, &mut Vec::new(), &mut object, depth.checked_sub(1).ok_or(ProtoError::Depth)?)?;
    Ok(object)
}

/// Decodes the fields of a message, or of a message that is inlined into it: then `outer` holds the tags that led there.
fn fields(
    bytes: &[u8],
    of: &Type,
    outer: &mut Vec<u32>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next_field()? {
        outer.push(tag);
        let found = of.fields.iter().find(|field| field.tags.starts_with(outer));
        match found {
            Some(field) if field.tags.len() == outer.len() => put(object, field, wire, depth)?,
            Some(_) => fields(wire.bytes()?, of, outer, object, depth)?,
            None => {}
        }
        outer.pop();
    }
    Ok(())
}

fn put(object: &mut Map<String, Value>, field: &Field, wire: Wire<'_>, depth: usize) -> Result<(), ProtoError> {
    match &field.shape {
        Shape::List(inner) => {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Ok(()) };
            if field.is_wrapped { items(wire, inner, list, depth) } else { element(wire, inner, list, depth) }
        }
        Shape::Map(inner) => {
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let Value::Object(map) = map else { return Ok(()) };
            let (key, value) = entry(wire, inner, field.is_wrapped, depth)?;
            map.insert(key, value);
            Ok(())
        }
        shape => {
            let value = value(wire, shape, depth)?;
            if !(value.is_null() || field.is_zero_absent && is_zero(&value)) {
                object.insert(field.name.to_owned(), value);
            }
            Ok(())
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// One element of a list, or all of a packed list of numbers.
fn element(wire: Wire<'_>, inner: &Shape, list: &mut Vec<Value>, depth: usize) -> Result<(), ProtoError> {
    match (wire, inner) {
        (Wire::Bytes(packed), Shape::Int32 | Shape::Int64 | Shape::Bool) => {
            let mut reader = Reader::new(packed);
            while !reader.is_empty() {
                list.push(value(Wire::Varint(reader.varint()?), inner, depth)?);
            }
        }
        _ => list.push(value(wire, inner, depth)?),
    }
    Ok(())
}

/// The `items` of a message that stands for a list (`ExtraValue`, `Verbs`).
fn items(wire: Wire<'_>, inner: &Shape, list: &mut Vec<Value>, depth: usize) -> Result<(), ProtoError> {
    let mut reader = Reader::new(wire.bytes()?);
    while let Some((tag, wire)) = reader.next_field()? {
        if tag == 1 {
            element(wire, inner, list, depth)?;
        }
    }
    Ok(())
}

fn entry(wire: Wire<'_>, inner: &Shape, is_wrapped: bool, depth: usize) -> Result<(String, Value), ProtoError> {
    let (mut key, mut found) = ("", None);
    let mut reader = Reader::new(wire.bytes()?);
    while let Some((tag, wire)) = reader.next_field()? {
        match tag {
            1 => key = wire.string()?,
            2 => found = Some(wire),
            _ => {}
        }
    }
    let value = match (found, inner) {
        (Some(wire), Shape::List(element)) if is_wrapped => {
            let mut list = Vec::new();
            items(wire, element, &mut list, depth)?;
            Value::Array(list)
        }
        (Some(wire), _) => value(wire, inner, depth)?,
        (None, Shape::String | Shape::Bytes) => Value::String(String::new()),
        (None, Shape::Int32 | Shape::Int64 | Shape::Double) => json!(0),
        (None, Shape::Bool) => Value::Bool(false),
        (None, Shape::List(_)) => Value::Array(Vec::new()),
        (None, _) => Value::Object(Map::new()),
    };
    Ok((key.to_owned(), value))
}

/// One value; null for the zero time and for raw JSON that is not there.
fn value(wire: Wire<'_>, shape: &Shape, depth: usize) -> Result<Value, ProtoError> {
    Ok(match shape {
        Shape::String => json!(wire.string()?),
        Shape::Bool => json!(wire.integer()? != 0),
        Shape::Int32 | Shape::Int64 => json!(wire.integer()?),
        Shape::Double => number(wire.double()?),
        Shape::Bytes => json!(STANDARD.encode(wire.bytes()?)),
        Shape::Time => time(wire.bytes()?, 0)?,
        Shape::MicroTime => time(wire.bytes()?, 6)?,
        Shape::Quantity => json!(quantity(wire.bytes()?)?),
        Shape::IntOrString => int_or_string(wire.bytes()?)?,
        Shape::Raw | Shape::Json | Shape::Fields => raw(wire.bytes()?)?,
        Shape::PropsOrBool | Shape::PropsOrArray | Shape::PropsOrStrings => props_or(wire.bytes()?, shape, depth)?,
        Shape::Struct(id) => Value::Object(structure(wire.bytes()?, id.get(), depth)?),
        Shape::List(_) | Shape::Map(_) => Value::Null,
    })
}

/// Go prints whole floating point numbers without a fraction.
fn number(value: f64) -> Value {
    let is_whole = value.fract() == 0.0 && value.abs() < 1e15;
    if is_whole { json!(value as i64) } else { Number::from_f64(value).map_or(Value::Null, Value::Number) }
}

/// `Timestamp{seconds, nanos}`; the zero time has neither.
fn time(bytes: &[u8], digits: u8) -> Result<Value, ProtoError> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next_field()? {
        match tag {
            1 => seconds = wire.integer()?,
            2 => nanos = wire.integer()?,
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| ProtoError::Overflow)?;
    let time = Timestamp::new(seconds, nanos).map_err(|_| ProtoError::Overflow)?;
    Ok(if digits == 0 {
        json!(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    } else {
        json!(time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
    })
}

fn quantity(bytes: &[u8]) -> Result<String, ProtoError> {
    let mut text = "";
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next_field()? {
        if tag == 1 {
            text = wire.string()?;
        }
    }
    Ok(if text.is_empty() { "0" } else { text }.to_owned())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtoError> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next_field()? {
        match tag {
            1 => is_text = wire.integer()? == 1,
            2 => number = wire.integer()?,
            3 => text = wire.string()?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

/// JSON bytes in a message with one field; they may be a protobuf envelope themselves.
fn raw(bytes: &[u8]) -> Result<Value, ProtoError> {
    let mut raw: &[u8] = &[];
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next_field()? {
        if tag == 1 {
            raw = wire.bytes()?;
        }
    }
    match raw {
        [] => Ok(Value::Null),
        raw if raw.starts_with(PREFIX) => super::decode(raw, None).map(Value::Object),
        raw => serde_json::from_slice(raw).map_err(|error| ProtoError::Json(error.to_string())),
    }
}

/// A schema, or what may stand in its place.
fn props_or(bytes: &[u8], shape: &Shape, depth: usize) -> Result<Value, ProtoError> {
    let props = || schema::get(schema::JSON_SCHEMA_PROPS);
    let schema_of = |wire: Wire<'_>| match props() {
        Some(of) => structure(wire.bytes()?, of, depth).map(Value::Object),
        None => Ok(Value::Null),
    };
    let (mut schema, mut allows, mut list) = (None, false, Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.next_field()? {
        match (shape, tag) {
            (Shape::PropsOrBool, 1) => allows = wire.integer()? != 0,
            (Shape::PropsOrBool, 2) | (_, 1) => schema = Some(schema_of(wire)?),
            (Shape::PropsOrArray, 2) => list.push(schema_of(wire)?),
            (Shape::PropsOrStrings, 2) => list.push(json!(wire.string()?)),
            _ => {}
        }
    }
    Ok(match (schema, shape) {
        (Some(schema), _) => schema,
        (None, Shape::PropsOrBool) => Value::Bool(allows),
        (None, _) => Value::Array(list),
    })
}
