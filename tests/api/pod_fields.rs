//! Every field of a pod's specification has a row in `pod_fields.tsv` that says what becomes of it: whatever the Pod API can say is
//! done, or refused with a reason; nothing is ignored in silence. The fields are those of the generated schema, so that a new one
//! fails until somebody has found out.
//!
//! A path is the JSON path with `[]` for the elements of a list and `{}` for the values of a map. `{a,b}` stands for either, and
//! `**` at the end (of refused ones only) for everything below. How:
//!
//! - `done`: the file acts on it; it names the field (or the word after `#`).
//! - `scheduler`: it decides where the pod runs.
//! - `api`: it is checked or defaulted, and means nothing to a node upstream either.
//! - `refused`: a pod with it is not admitted, as the specification in the last column shows.
//! - `node`: the API takes it, and what cannot be done says so: a pod that fails or waits with the reason.
//! - `upstream`: the gate that it needs is off upstream, or it means nothing there.
//! - `open`: see [`OPEN`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use orch::api::Object;
use orch::api::kind::Kind;
use orch::api::schema::{self, Shape, Type};
use orch::kinds::Kinds;
use serde_json::{Value, json};

/// Fields that nothing acts on yet, with why.
const OPEN: &[(&str, &str)] = &[("preemptionPolicy", "the scheduler orders pods by priority and evicts none for another")];

const HOW: &[&str] = &["done", "scheduler", "api", "refused", "node", "upstream", "open"];

struct Row {
    line: usize,
    path: String,
    how: String,
    place: String,
    sample: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All rows, one for each path.
fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("tests/api/pod_fields.tsv")).unwrap();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    let rows = lines.flat_map(|(at, line)| {
        let mut columns = line.split('\t').map(str::to_owned);
        let mut next = || columns.next().unwrap_or_default();
        let (path, how, place, sample) = (next(), next(), next(), next());
        let row = move |path| Row { line: at + 1, path, how: how.clone(), place: place.clone(), sample: sample.clone() };
        expand(&path).into_iter().map(row)
    });
    rows.collect()
}

/// `a{b,c}` as `ab` and `ac`; `{}` stays.
fn expand(path: &str) -> Vec<String> {
    let Some(open) = path.match_indices('{').map(|(at, _)| at).find(|at| !path[*at..].starts_with("{}")) else {
        return vec![path.to_owned()];
    };
    let (mut depth, mut parts, mut from) = (0, Vec::new(), open + 1);
    for (at, letter) in path[open..].char_indices().map(|(at, letter)| (open + at, letter)) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                parts.push(&path[from..at]);
                from = at + 1;
            }
            _ => {}
        }
        if depth == 0 {
            parts.push(&path[from..at]);
            from = at + 1;
            break;
        }
    }
    parts.iter().flat_map(|part| expand(&format!("{}{part}{}", &path[..open], &path[from..]))).collect()
}

/// All leaves below a type.
fn leaves(of: &Type, path: &str, found: &mut Vec<String>) {
    for field in &of.fields {
        let (mut at, mut shape) = (if path.is_empty() { String::new() } else { format!("{path}.") } + field.name, &field.shape);
        loop {
            match shape {
                Shape::List(inner) => (at, shape) = (at + "[]", inner),
                Shape::Map(inner) => (at, shape) = (at + "{}", inner),
                _ => break,
            }
        }
        match shape.as_struct() {
            Some(inner) => leaves(inner, &at, found),
            None => found.push(at),
        }
    }
}

fn fields() -> Vec<String> {
    let mut found = Vec::new();
    leaves(schema::get("io.k8s.api.core.v1.PodSpec").unwrap(), "", &mut found);
    assert!(found.len() > 800, "{}", found.len());
    found
}

#[test]
fn every_field_has_one_row() {
    let (rows, fields) = (rows(), fields());
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    let covers = |row: &Row, field: &str| match row.path.strip_suffix("**") {
        Some(above) => field.starts_with(above),
        None => row.path == *field,
    };
    for field in &fields {
        let covering: Vec<&Row> = rows.iter().filter(|row| covers(row, field)).collect();
        match covering.as_slice() {
            [row] => drop(used.insert(row.path.clone())),
            [] => wrong.push(format!("{field}: has no row: find out what becomes of it")),
            many => wrong.push(format!("{field}: has rows in lines {:?}", many.iter().map(|row| row.line).collect::<Vec<_>>())),
        }
    }
    for row in &rows {
        if !used.contains(&row.path) {
            wrong.push(format!("line {}: there is no field {}", row.line, row.path));
        }
        if !HOW.contains(&row.how.as_str()) || row.path.ends_with("**") && !["refused", "node"].contains(&row.how.as_str()) {
            wrong.push(format!("line {}: {} cannot be {:?}", row.line, row.path, row.how));
        }
    }
    let open: Vec<&str> = rows.iter().filter(|row| row.how == "open").map(|row| row.path.as_str()).collect();
    assert_eq!(open, OPEN.iter().map(|(path, _)| *path).collect::<Vec<_>>());
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// `setHostnameAsFQDN` as `set_hostname_as_fqdn`, as the Rust types have it.
fn snake(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let mut out = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| letters[before]);
        let ends_word = |next: &char| next.is_lowercase();
        let begins = before.is_some_and(|before| before.is_lowercase() || letters.get(at + 1).is_some_and(ends_word));
        if letter.is_uppercase() && before.is_some() && begins {
            out.push('_');
        }
        out.extend(letter.to_lowercase());
    }
    if out == "type" { "type_".to_owned() } else { out }
}

fn names(text: &str, word: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = code.flat_map(|line| line.match_indices(word).map(move |(at, _)| (line, at)));
    found.any(|(line, at)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word))
}

#[test]
fn the_file_that_acts_on_a_field_names_it() {
    let mut wrong = BTreeSet::new();
    let mut texts: BTreeMap<PathBuf, Option<String>> = BTreeMap::new();
    for row in rows().iter().filter(|row| row.how != "open") {
        let (file, word) = row.place.split_once('#').unwrap_or((&row.place, ""));
        let path = root().join(file);
        let text = texts.entry(path.clone()).or_insert_with(|| fs::read_to_string(Path::new(&path)).ok());
        let last = row.path.trim_end_matches("**").trim_end_matches(['.', '[', ']', '{', '}']).rsplit('.').next().unwrap();
        let word = if word.is_empty() { snake(last.trim_end_matches("[]").trim_end_matches("{}")) } else { word.to_owned() };
        match text {
            None => drop(wrong.insert(format!("line {}: there is no file {file:?}", row.line))),
            // What is refused together with all else is named by no word of its own.
            Some(text) if !names(text, &word) && row.how != "refused" => {
                wrong.insert(format!("line {}: {file} does not name {word}", row.line));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

/// What the API says of a pod with this in its specification.
fn judge(kind: &dyn Kind, sample: &Value) -> Vec<String> {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    spec.as_object_mut().unwrap().extend(sample.as_object().unwrap().clone());
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec});
    let mut pod: Object = serde_json::from_value(pod).unwrap();
    kind.default(&mut pod);
    kind.prepare_create(&mut pod);
    kind.validate(&pod).iter().map(|error| format!("{}: {}", error.path, error.body())).collect()
}

#[test]
fn what_is_refused_is_refused_by_its_name() {
    let kind = Kinds::builtin().find("", "v1", "pods").unwrap();
    assert_eq!(judge(&*kind, &json!({})), Vec::<String>::new());
    let mut wrong = Vec::new();
    for row in rows().iter().filter(|row| row.how == "refused") {
        let sample: Value = serde_json::from_str(&row.sample).unwrap_or_else(|error| panic!("line {}: {error}", row.line));
        let said = judge(&*kind, &sample);
        // Where the whole is refused, a part need not be named.
        let path = row.path.trim_end_matches("**").trim_end_matches('.').trim_end_matches("[]").replace("[]", "[0]");
        let path = format!("spec.{}", path.replace("{}", ""));
        let is_named = |error: &String| {
            let field = error.split(": ").next().unwrap_or("");
            // None may be there when a pod is created, whatever they say.
            let is_general = field == "spec.ephemeralContainers";
            field.starts_with(&path) || !is_general && [".", "["].iter().any(|next| path.starts_with(&format!("{field}{next}")))
        };
        if !said.iter().any(is_named) {
            wrong.push(format!("line {}: {path} is not refused: {said:?}", row.line));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}
