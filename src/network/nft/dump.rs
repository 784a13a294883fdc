//! Reading what is in the kernel: is a table there, which chains, sets, rules and elements does it have.

use super::encode::{comments, key_of};
use super::message::{Attributes, Message, SUBSYSTEM_NFTABLES, Writer};
use super::types::{Data, Element, MapTo, Set, Table, Verdict};
use super::{Nft, NftError, encode};

mod kind {
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const GET_SET: u16 = 10;
    pub(super) const GET_ELEMENTS: u16 = 13;
}

/// A rule that is in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRule {
    pub handle: u64,
    pub comment: Option<String>,
}

/// An element as the kernel tells it: an end of a range stands by itself.
struct RawElement {
    element: Element,
    is_end: bool,
}

impl Nft {
    /// Whether a table is there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn has_table(&self, table: &Table) -> Result<bool, NftError> {
        let table = table.clone();
        self.blocking(move |socket| {
            let (kind, family) = (SUBSYSTEM_NFTABLES | kind::GET_TABLE, encode::family(table.family));
            match socket.ask(&format!("look up table {table}"), kind, family, |writer| writer.text(1, &table.name)) {
                Ok(()) => Ok(true),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The names of all tables of a family.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn tables(&self, family: super::Family) -> Result<Vec<String>, NftError> {
        self.blocking(move |socket| {
            let read = |message: &Message<'_>| message.attributes().text(1).map(str::to_owned);
            socket.list("list tables", SUBSYSTEM_NFTABLES | kind::GET_TABLE, encode::family(family), |_| {}, read)
        })
        .await
    }

    /// The names of a table's chains; none if there is no such table.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn chains(&self, table: &Table) -> Result<Vec<String>, NftError> {
        self.names(table, kind::GET_CHAIN, 3, "list chains").await
    }

    /// The names of a table's sets and maps; none if there is no such table.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn sets(&self, table: &Table) -> Result<Vec<String>, NftError> {
        self.names(table, kind::GET_SET, 2, "list sets").await
    }

    async fn names(&self, table: &Table, kind: u16, name: u16, what: &'static str) -> Result<Vec<String>, NftError> {
        let table = table.clone();
        self.blocking(move |socket| {
            let fill = |writer: &mut Writer| writer.text(1, &table.name);
            let read = |message: &Message<'_>| {
                let attributes = message.attributes();
                let ours = attributes.text(1) == Some(&table.name);
                attributes.text(name).filter(|_| ours).map(str::to_owned)
            };
            let operation = format!("{what} of table {table}");
            let found = socket.list(&operation, SUBSYSTEM_NFTABLES | kind, encode::family(table.family), fill, read);
            none_if_missing(found)
        })
        .await
    }

    /// The rules of a chain, in order; none if there is no such chain.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn rules(&self, table: &Table, chain: &str) -> Result<Vec<FoundRule>, NftError> {
        let (table, chain) = (table.clone(), chain.to_owned());
        self.blocking(move |socket| {
            let fill = |writer: &mut Writer| {
                writer.text(1, &table.name);
                writer.text(2, &chain);
            };
            let read = |message: &Message<'_>| {
                let attributes = message.attributes();
                if attributes.text(1) != Some(&table.name) || attributes.text(2) != Some(&chain) {
                    return None;
                }
                let comment = attributes.get(7).and_then(|data| comment_in(data, comments::RULE));
                Some(FoundRule { handle: attributes.u64(3)?, comment })
            };
            let operation = format!("list rules of chain {chain} in table {table}");
            let kind = SUBSYSTEM_NFTABLES | kind::GET_RULE;
            none_if_missing(socket.list(&operation, kind, encode::family(table.family), fill, read))
        })
        .await
    }

    /// The elements of a set or map, in no order; none if there is no such set. Time-outs are what is left of them.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub async fn elements(&self, table: &Table, set: &Set) -> Result<Vec<Element>, NftError> {
        let (table, set) = (table.clone(), set.clone());
        self.blocking(move |socket| {
            let fill = |writer: &mut Writer| {
                writer.text(1, &table.name);
                writer.text(2, &set.name);
            };
            let read = |message: &Message<'_>| {
                let list = message.attributes().within(3)?;
                Some(list.filter_map(|(_, element)| element_of(&set, Attributes(element))).collect::<Vec<_>>())
            };
            let operation = format!("list elements of set {} in table {table}", set.name);
            let kind = SUBSYSTEM_NFTABLES | kind::GET_ELEMENTS;
            let found = none_if_missing(socket.list(&operation, kind, encode::family(table.family), fill, read))?;
            let found = found.into_iter().flatten().collect();
            Ok(if set.interval && !set.is_concatenated_interval() { joined(found) } else { whole(found) })
        })
        .await
    }
}

fn none_if_missing<T>(found: Result<Vec<T>, NftError>) -> Result<Vec<T>, NftError> {
    match found {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        found => found,
    }
}

fn whole(found: Vec<RawElement>) -> Vec<Element> {
    found.into_iter().map(|raw| raw.element).collect()
}

/// Puts begin and end of ranges together.
fn joined(mut found: Vec<RawElement>) -> Vec<Element> {
    // An end and the next begin may be the same key: the end comes first.
    found.sort_by(|one, other| one.element.key.cmp(&other.element.key).then(other.is_end.cmp(&one.is_end)));
    let mut elements: Vec<Element> = Vec::new();
    for raw in found {
        if !raw.is_end {
            let last = super::Key(vec![u8::MAX; raw.element.key.bytes().len()]);
            elements.push(Element { last: Some(last), ..raw.element });
        } else if let Some(element) = elements.last_mut() {
            element.last = Some(predecessor(raw.element.key.bytes()));
        }
    }
    elements
}

/// The number before this one, in the network's order.
fn predecessor(bytes: &[u8]) -> super::Key {
    let mut before = bytes.to_vec();
    for byte in before.iter_mut().rev() {
        let (difference, borrows) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrows {
            break;
        }
    }
    super::Key(before)
}

fn element_of(set: &Set, attributes: Attributes<'_>) -> Option<RawElement> {
    let key = key_of(attributes.within(1)?.get(1)?);
    let last = attributes.within(10).and_then(|end| end.get(1)).map(key_of);
    let data = attributes.within(2);
    let to = match &set.to {
        Some(MapTo::Verdict) => data.and_then(|data| data.within(2)).and_then(verdict_of).map(Data::Verdict),
        Some(MapTo::Value(_)) => data.and_then(|data| data.get(1)).map(|value| Data::Value(key_of(value))),
        None => None,
    };
    let left = attributes.u64(5).or_else(|| attributes.u64(4)).map(std::time::Duration::from_millis);
    let comment = attributes.get(6).and_then(|data| comment_in(data, 0));
    let is_end = attributes.u32(3).is_some_and(|flags| flags & 1 != 0);
    Some(RawElement { element: Element { key, last, to, timeout: left, comment }, is_end })
}

fn verdict_of(attributes: Attributes<'_>) -> Option<Verdict> {
    let chain = || attributes.text(2).map(Into::into);
    match attributes.u32(1)?.cast_signed() {
        0 => Some(Verdict::Drop),
        1 => Some(Verdict::Accept),
        -1 => Some(Verdict::Continue),
        -3 => chain().map(Verdict::Jump),
        -4 => chain().map(Verdict::Goto),
        -5 => Some(Verdict::Return),
        _ => None,
    }
}

/// The comment in nft's user data: type, length, value, one after the other.
fn comment_in(mut data: &[u8], kind: u8) -> Option<String> {
    while let [found, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *found == kind {
            return std::str::from_utf8(value).ok().map(|text| text.trim_end_matches('\0').to_owned());
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}
