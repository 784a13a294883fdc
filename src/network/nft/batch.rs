//! A transaction: operations that the kernel carries out all or none.

use super::encode;
use super::message::{SUBSYSTEM_NFTABLES, Writer, flags};
use super::types::{Base, Element, Rule, Set, Table};

/// Numbers of nf_tables' messages.
mod kind {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const DELETE_CHAIN: u16 = 5;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const DELETE_RULE: u16 = 8;
    pub(super) const NEW_SET: u16 = 9;
    pub(super) const DELETE_SET: u16 = 11;
    pub(super) const NEW_ELEMENTS: u16 = 12;
    pub(super) const DELETE_ELEMENTS: u16 = 14;
}

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// An attribute holds less than 64 KiB, and an element less than 1 KiB: more elements go into the next message.
const ELEMENTS_BYTES: usize = 63 << 10;

/// Operations for one transaction, in order. [`Nft::commit`](super::Nft::commit) sends it.
#[derive(Debug, Clone)]
pub struct Batch {
    writer: Writer,
    /// What each message was for; the index is its sequence number less [`FIRST`].
    operations: Vec<Operation>,
}

/// The sequence number of the first operation; the one before opens the batch.
pub(super) const FIRST: u32 = 1;

/// What a message was for, for an error that names it.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    verb: &'static str,
    table: Table,
    name: String,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, table, name } = self;
        write!(formatter, "{verb} {name}{}table {table}", if name.is_empty() { "" } else { " in " })
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    pub fn new() -> Self {
        let mut writer = Writer::default();
        let begin = writer.begin(BATCH_BEGIN, flags::REQUEST, 0, 0, SUBSYSTEM_NFTABLES >> 8);
        writer.end(begin);
        Self { writer, operations: Vec::new() }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// How many messages it is; a message adds or deletes many elements.
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// The finished transaction, and what each of its messages is for.
    pub(super) fn finish(mut self) -> (Writer, Vec<Operation>) {
        let sequence = self.next_sequence();
        let end = self.writer.begin(BATCH_END, flags::REQUEST, sequence, 0, SUBSYSTEM_NFTABLES >> 8);
        self.writer.end(end);
        (self.writer, self.operations)
    }

    fn next_sequence(&self) -> u32 {
        FIRST.saturating_add(u32::try_from(self.operations.len()).unwrap_or(u32::MAX))
    }

    fn operation(
        &mut self,
        (verb, kind, extra): (&'static str, u16, u16),
        table: &Table,
        name: &str,
        fill: impl FnOnce(&mut Writer, u32),
    ) {
        let sequence = self.next_sequence();
        let family = encode::family(table.family);
        let mark = self.writer.begin(SUBSYSTEM_NFTABLES | kind, flags::REQUEST | extra, sequence, family, 0);
        self.writer.text(1, &table.name);
        fill(&mut self.writer, sequence);
        self.writer.end(mark);
        self.operations.push(Operation { verb, table: table.clone(), name: name.to_owned() });
    }

    /// Makes a table; one that is there stays.
    pub fn add_table(&mut self, table: &Table) {
        self.operation(("add", kind::NEW_TABLE, flags::CREATE), table, "", |_, _| {});
    }

    /// Removes a table and all that is in it; it must be there.
    pub fn delete_table(&mut self, table: &Table) {
        self.operation(("delete", kind::DELETE_TABLE, 0), table, "", |_, _| {});
    }

    /// Removes a table, whether it is there or not.
    pub fn remove_table(&mut self, table: &Table) {
        self.add_table(table);
        self.delete_table(table);
    }

    /// Makes a chain that others jump to; one that is there stays.
    pub fn add_chain(&mut self, table: &Table, chain: &str) {
        self.operation(("add chain", kind::NEW_CHAIN, flags::CREATE), table, chain, |writer, _| writer.text(3, chain));
    }

    /// Makes a chain that the kernel calls at a hook.
    pub fn add_base_chain(&mut self, table: &Table, chain: &str, base: Base) {
        self.operation(("add chain", kind::NEW_CHAIN, flags::CREATE), table, chain, |writer, _| {
            writer.text(3, chain);
            writer.nested(4, |writer| {
                writer.u32(1, base.hook as u32);
                writer.attribute(2, &base.priority.to_be_bytes());
            });
            writer.u32(5, base.policy as u32);
            writer.text(7, base.kind.word());
        });
    }

    /// Removes a chain and its rules; nothing may jump to it any more.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) {
        self.flush_chain(table, chain);
        self.operation(("delete chain", kind::DELETE_CHAIN, 0), table, chain, |writer, _| writer.text(3, chain));
    }

    /// Removes the rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.operation(("flush chain", kind::DELETE_RULE, 0), table, chain, |writer, _| writer.text(2, chain));
    }

    /// Puts a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.rule(("add rule to chain", kind::NEW_RULE, flags::CREATE | flags::APPEND), table, chain, rule);
    }

    /// Puts a rule at the beginning of a chain.
    pub fn insert_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.rule(("insert rule into chain", kind::NEW_RULE, flags::CREATE), table, chain, rule);
    }

    fn rule(&mut self, what: (&'static str, u16, u16), table: &Table, chain: &str, rule: &Rule) {
        self.operation(what, table, chain, |writer, _| {
            writer.text(2, chain);
            encode::rule(writer, rule);
        });
    }

    /// Puts a rule in the place of another.
    pub fn replace_rule(&mut self, table: &Table, chain: &str, handle: u64, rule: &Rule) {
        self.operation(("replace rule in chain", kind::NEW_RULE, flags::REPLACE), table, chain, |writer, _| {
            writer.text(2, chain);
            writer.u64(3, handle);
            encode::rule(writer, rule);
        });
    }

    /// Removes one rule.
    pub fn delete_rule(&mut self, table: &Table, chain: &str, handle: u64) {
        self.operation(("delete rule of chain", kind::DELETE_RULE, 0), table, chain, |writer, _| {
            writer.text(2, chain);
            writer.u64(3, handle);
        });
    }

    /// Makes a set or map; one that is there stays, if it is of the same kind.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.operation(("add set", kind::NEW_SET, flags::CREATE), table, &set.name, |writer, sequence| {
            writer.text(2, &set.name);
            encode::set(writer, set, sequence);
        });
    }

    /// Removes a set or map; no rule may look into it any more.
    pub fn delete_set(&mut self, table: &Table, set: &str) {
        self.operation(("delete set", kind::DELETE_SET, 0), table, set, |writer, _| writer.text(2, set));
    }

    /// Removes all elements of a set or map.
    pub fn flush_set(&mut self, table: &Table, set: &str) {
        self.operation(("flush set", kind::DELETE_ELEMENTS, 0), table, set, |writer, _| writer.text(2, set));
    }

    /// Adds elements. One that is there stays if it gives the same, and is an error if it does not: delete it first.
    pub fn add_elements<'a>(&mut self, table: &Table, set: &Set, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(("add elements to set", kind::NEW_ELEMENTS, flags::CREATE), table, set, elements);
    }

    /// Adds elements that must not be there.
    pub fn create_elements<'a>(&mut self, table: &Table, set: &Set, elements: impl IntoIterator<Item = &'a Element>) {
        let what = ("create elements in set", kind::NEW_ELEMENTS, flags::CREATE | flags::EXCLUSIVE);
        self.elements(what, table, set, elements);
    }

    /// Deletes elements, which must be there. What a map gave for them need not be said.
    pub fn delete_elements<'a>(&mut self, table: &Table, set: &Set, elements: impl IntoIterator<Item = &'a Element>) {
        self.elements(("delete elements of set", kind::DELETE_ELEMENTS, 0), table, set, elements);
    }

    fn elements<'a>(
        &mut self,
        what: (&'static str, u16, u16),
        table: &Table,
        set: &Set,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            self.operation(what, table, &set.name, |writer, _| {
                writer.text(2, &set.name);
                let list = writer.open(3);
                let begin = writer.len();
                while writer.len() - begin < ELEMENTS_BYTES {
                    let Some(element) = elements.next() else { break };
                    encode::element(writer, set, element);
                }
                writer.close(list);
            });
        }
    }
}
