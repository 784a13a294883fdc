//! Label selectors, equality and set based: `app=web,tier in (a,b),!canary`, in the grammar and words of `apimachinery/pkg/labels`.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::Values;
use crate::api::names;

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    GreaterThan,
    LessThan,
    Exists,
    DoesNotExist,
}

const BINARY: &[(Operator, &str)] = &[
    (Operator::In, "in"),
    (Operator::NotIn, "notin"),
    (Operator::Equals, "="),
    (Operator::DoubleEquals, "=="),
    (Operator::NotEquals, "!="),
    (Operator::GreaterThan, "gt"),
    (Operator::LessThan, "lt"),
];

/// One term: a label and what must be true of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    /// Sorted, without repeats.
    pub values: Vec<String>,
}

/// Terms that must all hold. [`Selector::everything`] has no terms; [`Selector::nothing`] never matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Matches every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses the text form of `labelSelector=`.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Parser { tokens: lex(text), at: 0 }.parse()?;
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    /// The selector of a typed `LabelSelector`; `None` matches nothing, an empty one everything.
    ///
    /// # Errors
    /// Upstream's message for an unknown operator, a bad key or a bad value.
    pub fn from_typed(selector: Option<&LabelSelector>) -> Result<Self, String> {
        let Some(selector) = selector else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(&expression.key, operator, values)?);
        }
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Self { requirements, nothing: false })
    }

    /// The selector that asks for each of these labels.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let exact = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        let mut requirements: Vec<Requirement> = labels.into_iter().map(exact).collect();
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Self { requirements, nothing: false }
    }

    /// Whether it matches everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether every term holds.
    pub fn matches(&self, labels: &(impl Values + ?Sized)) -> bool {
        !self.nothing && self.requirements.iter().all(|term| term.matches(labels.value(&term.key)))
    }

    /// A label and the only value it may have, for a look-up in an index.
    pub fn exact(&self) -> impl Iterator<Item = (&str, &str)> {
        self.requirements.iter().filter_map(|term| match (term.operator, term.values.as_slice()) {
            (Operator::In | Operator::Equals | Operator::DoubleEquals, [only]) => Some((term.key.as_str(), only.as_str())),
            _ => None,
        })
    }
}

impl TryFrom<&LabelSelector> for Selector {
    type Error = String;

    fn try_from(selector: &LabelSelector) -> Result<Self, String> {
        Self::from_typed(Some(selector))
    }
}

impl Requirement {
    /// A checked term.
    ///
    /// # Errors
    /// Upstream's message.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        check_key("key", key)?;
        values.sort();
        values.dedup();
        let wrong = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => Some("for 'in', 'notin' operators, values set can't be empty"),
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            return Err(format!("values: Invalid value: {values:?}: {wrong}"));
        }
        if matches!(operator, Operator::GreaterThan | Operator::LessThan)
            && let Some((index, value)) = values.iter().enumerate().find(|(_, value)| value.parse::<i64>().is_err())
        {
            return Err(format!(
                "values[{index}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ));
        }
        for (index, value) in values.iter().enumerate() {
            if let [first, rest @ ..] = names::label_value(value).as_slice() {
                let why = rest.iter().fold(first.clone(), |text, more| format!("{text}; {more}"));
                return Err(format!("values[{index}][{key}]: Invalid value: {value:?}: {why}"));
            }
        }
        Ok(Self { key: key.to_owned(), operator, values })
    }

    fn has(&self, value: &str) -> bool {
        self.values.iter().any(|candidate| candidate == value)
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let compare = |holds: fn(&i64, &i64) -> bool| {
            let left = value.and_then(|value| value.parse::<i64>().ok());
            let right = self.values.first().and_then(|value| value.parse::<i64>().ok());
            left.zip(right).is_some_and(|(left, right)| holds(&left, &right))
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => value.is_some_and(|value| self.has(value)),
            Operator::NotIn | Operator::NotEquals => value.is_none_or(|value| !self.has(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(i64::gt),
            Operator::LessThan => compare(i64::lt),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(formatter, "{key} in ({values})"),
            Operator::NotIn => write!(formatter, "{key} notin ({values})"),
            Operator::Equals => write!(formatter, "{key}={values}"),
            Operator::DoubleEquals => write!(formatter, "{key}=={values}"),
            Operator::NotEquals => write!(formatter, "{key}!={values}"),
            Operator::GreaterThan => write!(formatter, "{key}>{values}"),
            Operator::LessThan => write!(formatter, "{key}<{values}"),
            Operator::Exists => write!(formatter, "{key}"),
            Operator::DoesNotExist => write!(formatter, "!{key}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.requirements.iter().enumerate() {
            write!(formatter, "{}{term}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn check_key(path: &str, key: &str) -> Result<(), String> {
    match names::qualified_name(key).as_slice() {
        [] => Ok(()),
        wrong => Err(format!("{path}: Invalid value: {key:?}: {}", wrong.join("; "))),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Close,
    Comma,
    Not,
    Operator(Operator, String),
    Identifier(String),
    Open,
    End,
}

impl Token {
    fn literal(&self) -> &str {
        match self {
            Self::Close => ")",
            Self::Comma => ",",
            Self::Not => "!",
            Self::Open => "(",
            Self::End => "",
            Self::Operator(_, text) | Self::Identifier(text) => text,
        }
    }

    /// The token where a value is expected: there `in` and `notin` are identifiers.
    fn into_value(self) -> Self {
        match self {
            Self::Operator(Operator::In | Operator::NotIn, text) => Self::Identifier(text),
            other => other,
        }
    }
}

fn is_special(character: char) -> bool {
    matches!(character, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', '\r', '\n']);
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            ',' => (Token::Comma, 1),
            '>' => (Token::Operator(Operator::GreaterThan, ">".to_owned()), 1),
            '<' => (Token::Operator(Operator::LessThan, "<".to_owned()), 1),
            '=' if rest.starts_with("==") => (Token::Operator(Operator::DoubleEquals, "==".to_owned()), 2),
            '=' => (Token::Operator(Operator::Equals, "=".to_owned()), 1),
            '!' if rest.starts_with("!=") => (Token::Operator(Operator::NotEquals, "!=".to_owned()), 2),
            '!' => (Token::Not, 1),
            _ => {
                let length = rest.find(|at: char| is_special(at) || at.is_ascii_whitespace()).unwrap_or(rest.len());
                let word = rest[..length].to_owned();
                let token = match word.as_str() {
                    "in" => Token::Operator(Operator::In, word),
                    "notin" => Token::Operator(Operator::NotIn, word),
                    _ => Token::Identifier(word),
                };
                (token, length)
            }
        };
        tokens.push(token);
        rest = rest[length..].trim_start_matches([' ', '\t', '\r', '\n']);
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek_raw(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn peek(&self) -> Token {
        self.peek_raw().into_value()
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Identifier(_) | Token::Not => {}
                Token::End => return Ok(requirements),
                other => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.literal())),
            }
            requirements.push(self.requirement().map_err(|why| format!("unable to parse requirement: {why}"))?);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Comma => match self.peek() {
                    Token::Identifier(_) | Token::Not => {}
                    other => return Err(format!("found '{}', expected: identifier after ','", other.literal())),
                },
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.literal())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token == Token::Not;
        if negated {
            token = self.next();
        }
        let Token::Identifier(key) = token else {
            return Err(format!("found '{}', expected: identifier", token.literal()));
        };
        check_key("<nil>", &key)?;
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let token = self.peek_raw();
        self.at += 1;
        let Token::Operator(operator, _) = token else {
            let expected: Vec<&str> = BINARY.iter().map(|(_, word)| *word).collect();
            return Err(format!("found '{}', expected: {}", token.literal(), expected.join(", ")));
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Identifier(value) => Ok(value),
            other => Err(format!("found '{}', expected: identifier", other.literal())),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Open {
            return Err(format!("found '{}' expected: '('", open.literal()));
        }
        match self.peek() {
            Token::Identifier(_) | Token::Comma => self.value_list(),
            Token::Close => {
                self.at += 1;
                Ok(vec![String::new()])
            }
            other => Err(format!("found '{}', expected: ',', ')' or identifier", other.literal())),
        }
    }

    fn value_list(&mut self) -> Result<Vec<String>, String> {
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Identifier(value) => {
                    values.push(value);
                    match self.peek() {
                        Token::Comma => {}
                        Token::Close => {
                            self.at += 1;
                            return Ok(values);
                        }
                        other => return Err(format!("found '{}', expected: ',' or ')'", other.literal())),
                    }
                }
                Token::Comma => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    match self.peek() {
                        Token::Close => {
                            self.at += 1;
                            values.push(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.at += 1;
                            values.push(String::new());
                        }
                        _ => {}
                    }
                }
                other => return Err(format!("found '{}', expected: ',', or identifier", other.literal())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn matches_as_upstream() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("n", "5"), ("in", "x")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (text, matched) in [
            ("", true),
            ("app=web", true),
            ("app==web,n", true),
            ("app!=web", false),
            ("tier!=a", true),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("tier notin (a,b)", true),
            ("!app", false),
            ("!tier", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("in=x", true),
            ("app in ()", false),
            ("app=", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), matched, "{text}");
        }
    }

    #[test]
    fn errors_are_upstreams() {
        for (text, error) in [
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ] {
            assert_eq!(Selector::parse(text).unwrap_err(), error, "{text}");
        }
        let key = Selector::parse("-a=b").unwrap_err();
        assert!(key.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must consist of"), "{key}");
        let value = Selector::parse("a=-b").unwrap_err();
        assert!(value.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-b\": a valid label"), "{value}");
    }

    #[test]
    fn typed_selectors() {
        assert!(!Selector::from_typed(None).unwrap().matches(&BTreeMap::new()));
        let empty = LabelSelector::default();
        assert!(Selector::from_typed(Some(&empty)).unwrap().is_everything());
        let labels: BTreeMap<String, String> = [("app".to_owned(), "web".to_owned())].into();
        let typed = LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() };
        let selector = Selector::from_typed(Some(&typed)).unwrap();
        assert!(selector.matches(&labels));
        assert_eq!(selector.exact().collect::<Vec<_>>(), [("app", "web")]);
    }
}
