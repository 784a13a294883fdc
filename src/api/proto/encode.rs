//! From the JSON tree to protobuf. Fields are written in the order of their tags, as Go writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::ProtoError;
use super::wire::Writer;
use crate::api::schema::{self, Field, Shape, Type};

/// Encodes an object as a message of a type. Fields that protobuf does not have are left out.
pub(super) fn message(object: &Map<String, Value>, of: &Type) -> Result<Vec<u8>, ProtoError> {
    let present = object.iter().filter(|(_, value)| !value.is_null());
    let mut present: Vec<_> =
        present.filter_map(|(name, value)| Some((of.field(name)?, value))).filter(|(field, _)| !field.tags.is_empty()).collect();
    present.sort_by(|(left, _), (right, _)| left.tags.cmp(&right.tags));
    let mut writer = Writer::default();
    group(&mut writer, &present, 0, of)?;
    Ok(writer.finish())
}

/// Writes fields that share their tags up to `level`: those with more tags stand in an inlined message.
fn group(writer: &mut Writer, fields: &[(&Field, &Value)], level: usize, of: &Type) -> Result<(), ProtoError> {
    let same = |(left, _): &(&Field, &Value), (right, _): &(&Field, &Value)| left.tags.get(level) == right.tags.get(level);
    for chunk in fields.chunk_by(same) {
        match chunk {
            [(field, value)] if field.tags.len() == level + 1 => {
                let wrong = ProtoError::Value { structure: of.name, field: field.name };
                put(writer, field, field.tags[level], value).map_err(|error| error.unwrap_or(wrong))?;
            }
            _ => {
                let mut inner = Writer::default();
                group(&mut inner, chunk, level + 1, of)?;
                let tag = chunk.first().and_then(|(field, _)| field.tags.get(level)).copied().unwrap_or(0);
                writer.bytes(tag, &inner.finish());
            }
        }
    }
    Ok(())
}

/// `None`: the value does not fit, which the caller knows to name.
type Fit<T> = Result<T, Option<ProtoError>>;

fn put(writer: &mut Writer, field: &Field, tag: u32, value: &Value) -> Fit<()> {
    match (&field.shape, value) {
        (Shape::List(inner), Value::Array(list)) if field.is_wrapped => {
            writer.bytes(tag, &items(inner, list)?);
            Ok(())
        }
        (Shape::List(inner), Value::Array(list)) => list.iter().try_for_each(|item| scalar(writer, inner, tag, item)),
        (Shape::Map(inner), Value::Object(map)) => map.iter().try_for_each(|(key, item)| {
            let mut entry = Writer::default();
            entry.string(1, key);
            match (&**inner, item) {
                (Shape::List(element), Value::Array(list)) if field.is_wrapped => entry.bytes(2, &items(element, list)?),
                _ => scalar(&mut entry, inner, 2, item)?,
            }
            writer.bytes(tag, &entry.finish());
            Ok(())
        }),
        (shape, value) => scalar(writer, shape, tag, value),
    }
}

fn items(inner: &Shape, list: &[Value]) -> Fit<Vec<u8>> {
    let mut items = Writer::default();
    list.iter().try_for_each(|item| scalar(&mut items, inner, 1, item))?;
    Ok(items.finish())
}

fn scalar(writer: &mut Writer, shape: &Shape, tag: u32, value: &Value) -> Fit<()> {
    match (shape, value) {
        (Shape::String, Value::String(text)) => writer.string(tag, text),
        (Shape::Bool, Value::Bool(value)) => writer.integer(tag, i64::from(*value)),
        (Shape::Int32 | Shape::Int64, Value::Number(number)) => writer.integer(tag, number.as_i64().ok_or(None)?),
        (Shape::Double, Value::Number(number)) => writer.double(tag, number.as_f64().ok_or(None)?),
        (Shape::Bytes, Value::String(text)) => writer.bytes(tag, &STANDARD.decode(text).map_err(|_| None)?),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => writer.bytes(tag, &time(text)?),
        (Shape::Quantity, value) => writer.bytes(tag, &wrapped(plain(value).as_bytes())),
        (Shape::IntOrString, value) => writer.bytes(tag, &int_or_string(value)?),
        (Shape::Raw | Shape::Json | Shape::Fields, value) => writer.bytes(tag, &wrapped(value.to_string().as_bytes())),
        (Shape::Struct(id), Value::Object(map)) => writer.bytes(tag, &message(map, id.get()).map_err(Some)?),
        (Shape::PropsOrBool | Shape::PropsOrArray | Shape::PropsOrStrings, value) => writer.bytes(tag, &props_or(shape, value)?),
        _ => return Err(None),
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A message with one field of bytes.
fn wrapped(bytes: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes(1, bytes);
    writer.finish()
}

fn time(text: &str) -> Fit<Vec<u8>> {
    let time: Timestamp = text.parse().map_err(|_| None)?;
    let mut writer = Writer::default();
    writer.integer(1, time.as_second());
    writer.integer(2, i64::from(time.subsec_nanosecond()));
    Ok(writer.finish())
}

fn int_or_string(value: &Value) -> Fit<Vec<u8>> {
    let mut writer = Writer::default();
    writer.integer(1, i64::from(value.is_string()));
    writer.integer(2, if value.is_string() { 0 } else { value.as_i64().ok_or(None)? });
    writer.string(3, value.as_str().unwrap_or(""));
    Ok(writer.finish())
}

fn props_or(shape: &Shape, value: &Value) -> Fit<Vec<u8>> {
    let mut writer = Writer::default();
    let (bool_tag, schema_tag) = if *shape == Shape::PropsOrBool { (1, 2) } else { (0, 1) };
    let props = |value: &Value| match (schema::get(schema::JSON_SCHEMA_PROPS), value) {
        (Some(of), Value::Object(map)) => message(map, of).map_err(Some),
        _ => Err(None),
    };
    match (shape, value) {
        (Shape::PropsOrBool, Value::Bool(value)) => writer.integer(bool_tag, i64::from(*value)),
        (_, Value::Object(_)) => {
            if bool_tag != 0 {
                writer.integer(bool_tag, 1);
            }
            writer.bytes(schema_tag, &props(value)?);
        }
        (Shape::PropsOrArray, Value::Array(list)) => {
            for item in list {
                writer.bytes(2, &props(item)?);
            }
        }
        (Shape::PropsOrStrings, Value::Array(list)) => {
            for item in list {
                writer.string(2, item.as_str().ok_or(None)?);
            }
        }
        _ => return Err(None),
    }
    Ok(writer.finish())
}
