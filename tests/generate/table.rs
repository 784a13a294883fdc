//! Prints the table that `api::schema` reads, and the descriptions that `server::openapi` reads, line for line beside it.

use super::openapi::{Field, Types};

/// The table and the descriptions: the nth line of one belongs to the nth line of the other.
pub fn print(types: &Types) -> (String, String) {
    let (mut table, mut descriptions) = (String::new(), String::new());
    for (name, found) in types {
        let atomic = if found.atomic { "atomic" } else { "" };
        table.push_str(&format!("{name}\t{atomic}\t{}\n", found.gvk.as_deref().unwrap_or("")));
        describe(&mut descriptions, &found.description);
        for (name, field) in &found.fields {
            table.push_str(&line(name, field));
            describe(&mut descriptions, &field.description);
        }
    }
    (table, descriptions)
}

fn describe(out: &mut String, text: &str) {
    out.push_str(&text.replace('\\', "\\\\").replace('\n', "\\n"));
    out.push('\n');
}

fn line(name: &str, field: &Field) -> String {
    let flags: String = [(field.required, 'r'), (field.zero_is_absent, 'z'), (field.wrapped, 'w')]
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, flag)| flag)
        .collect();
    let tags = field.tags.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    let patch = if field.patch_key.is_empty() {
        field.patch_strategy.clone()
    } else {
        format!("{}:{}", field.patch_strategy, field.patch_key)
    };
    let list = match (field.list_type.as_str(), field.map_type.as_str()) {
        ("", map) => map.to_owned(),
        ("map", _) => format!("map:{}", field.list_keys.join(",")),
        (list, _) => list.to_owned(),
    };
    let columns = [name, &field.shape, &flags, &tags, &patch, &list, &field.default];
    format!("\t{}\n", columns.join("\t").trim_end())
}
