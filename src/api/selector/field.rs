//! Field selectors: `metadata.name=a,spec.nodeName!=n1`, parsed as `apimachinery/pkg/fields` does.

use std::fmt;

use super::Values;

/// One term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub field: String,
    /// `=` and `==`, or `!=`.
    pub equals: bool,
    pub value: String,
}

/// Terms that must all hold; none matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
}

impl Selector {
    /// Parses a selector.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let requirements = terms(text)
            .into_iter()
            .filter(|term| !term.is_empty())
            .map(|term| Requirement::parse(text, term))
            .collect::<Result<_, _>>()?;
        Ok(Self { requirements })
    }

    /// A selector of one exact term.
    pub fn equal(field: &str, value: &str) -> Self {
        Self { requirements: vec![Requirement { field: field.to_owned(), equals: true, value: value.to_owned() }] }
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether every term holds; a field that is missing counts as empty.
    pub fn matches(&self, fields: &(impl Values + ?Sized)) -> bool {
        self.requirements.iter().all(|term| (fields.value(&term.field).unwrap_or("") == term.value) == term.equals)
    }

    /// The value that `field` must have, if an exact term says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|term| term.equals && term.field == field).map(|term| term.value.as_str())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.requirements.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let operator = if term.equals { "=" } else { "!=" };
            write!(formatter, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
}

impl Requirement {
    fn parse(selector: &str, term: &str) -> Result<Self, String> {
        let (field, equals, value) =
            split(term).ok_or_else(|| format!("invalid selector: '{selector}'; can't understand '{term}'"))?;
        Ok(Self { field: field.to_owned(), equals, value: unescape(value)? })
    }
}

/// Splits at commas that no backslash precedes.
fn terms(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find('=')?;
    let (left, right) = (&term[..at], &term[at + 1..]);
    if let Some(field) = left.strip_suffix('!') {
        return Some((field, false, right));
    }
    Some((left, true, right.strip_prefix('=').unwrap_or(right)))
}

fn unescape(value: &str) -> Result<String, String> {
    if !value.contains(['\\', ',', '=']) {
        return Ok(value.to_owned());
    }
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => return Err(format!("invalid field selector: invalid escape sequence: \\{other}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {character}")),
            plain => out.push(plain),
        }
    }
    Ok(out)
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn parses_and_matches() {
        let fields: BTreeMap<String, String> =
            [("metadata.name", "a"), ("spec.nodeName", "n,1")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (text, matched) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a", true),
            ("metadata.name!=a", false),
            ("metadata.name=a,spec.nodeName=n\\,1", true),
            ("metadata.name=a,,", true),
            ("status.phase=", true),
            ("status.phase!=Failed", true),
        ] {
            let selector = Selector::parse(text).unwrap();
            assert_eq!(selector.matches(&fields), matched, "{text}");
            assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }
        assert_eq!(Selector::parse("a,b=c").unwrap_err(), "invalid selector: 'a,b=c'; can't understand 'a'");
        assert!(Selector::parse("a=b=c").is_err());
    }
}
