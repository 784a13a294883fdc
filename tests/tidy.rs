//! The shape of the tree as a test: who may import whom, which crate is used where, sizes, bans.

use std::fs;
use std::path::{Path, PathBuf};

/// Module, and the modules of ours that it may import; itself is always allowed.
const IMPORTS: &[(&str, &[&str])] = &[
    ("rt", &[]),
    ("api", &[]),
    ("http", &["rt"]),
    ("pki", &["rt"]),
    ("cri", &["rt"]),
    ("store", &["rt"]),
    ("kinds", &["api"]),
    ("registry", &["api", "kinds", "store", "rt", "auth::UserInfo"]),
    ("auth", &["api", "kinds", "registry", "store", "pki", "rt"]),
    ("admission", &["api", "kinds", "registry", "auth", "http", "rt"]),
    ("server", &["api", "kinds", "registry", "auth", "admission", "http", "pki", "rt", "store"]),
    ("client", &["api", "kinds", "http", "rt"]),
    ("controllers", &["api", "kinds", "client", "rt"]),
    ("scheduler", &["api", "kinds", "client", "rt"]),
    ("network", &["api", "kinds", "client", "http", "rt"]),
    ("agent", &["api", "kinds", "client", "cri", "network", "http", "pki", "rt"]),
];

/// Crate (or item), and the paths below src/ that may name it.
const FENCES: &[(&str, &[&str])] = &[
    ("bollard::", &["cri/docker"]),
    ("rusqlite::", &["store/sqlite"]),
    ("openraft::", &["store/raft", "store/sqlite"]),
    ("clap::", &["cmd"]),
    ("rustls::", &["http", "server", "pki", "cmd", "client/https", "agent/server"]),
    ("tokio::spawn", &["rt"]),
    ("tokio::task::spawn", &["rt"]),
    ("Instant::now", &["rt"]),
    ("SystemTime::now", &["rt"]),
    ("Timestamp::now", &["rt"]),
    ("rand::", &["rt", "pki"]),
];

/// Words that do not belong in the sources, with why.
const BANNED: &[(&str, &str)] = &[
    ("todo!", "finish it"),
    ("unimplemented!", "finish it"),
    ("#[ignore", "a test that is not run is no test"),
    ("TODO", "do it, or open an issue"),
    ("FIXME", "fix it"),
    ("thread::sleep", "wait for an event"),
];

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

struct Source {
    /// Relative to src/, with `/`.
    path: String,
    /// Without the unit tests at its end.
    code: String,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let (base, mut files) = (root().join("src"), Vec::new());
    collect(&base, &mut files);
    files.sort();
    let source = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(&base).unwrap().to_str().unwrap().to_owned();
        let test_only = path.ends_with("tests.rs") || path.contains("/tests/") || path == "store/suite.rs";
        let code = if test_only { String::new() } else { without_tests(&text) };
        Source { path, code, text }
    };
    files.into_iter().map(source).collect()
}

/// Unit tests stand at the end of a file.
fn without_tests(text: &str) -> String {
    let inline = |at: &usize| text[*at..].lines().nth(1).is_some_and(|line| line.ends_with('{'));
    let end = text.find("#[cfg(test)]\nmod ").filter(inline);
    text[..end.unwrap_or(text.len())].to_owned()
}

fn code_lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source.code.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn module(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

fn check(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = module(&source.path);
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == own) else { continue };
        for (at, line) in code_lines(&source) {
            for rest in line.split("crate::").skip(1) {
                let target: String = rest.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
                let known = IMPORTS.iter().any(|(name, _)| *name == target) || target == "cmd";
                let item_allowed = allowed.iter().any(|allow| allow.contains("::") && rest.starts_with(allow));
                if known && target != own && !allowed.contains(&target.as_str()) && !item_allowed {
                    wrong.push(format!("src/{}:{at}: {own} must not import {target}", source.path));
                }
            }
        }
    }
    check(wrong);
}

#[test]
fn crates_stay_behind_their_fences() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (at, line) in code_lines(&source) {
            for (item, allowed) in FENCES {
                let in_word = |start: usize| line[..start].ends_with(|before: char| before.is_alphanumeric() || before == '_');
                let named = line.match_indices(item).any(|(start, _)| !in_word(start));
                if named && !allowed.iter().any(|path| source.path.starts_with(path)) {
                    wrong.push(format!("src/{}:{at}: {item} is used only in {}", source.path, allowed.join(", ")));
                }
            }
        }
    }
    check(wrong);
}

#[test]
fn nothing_banned() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (at, line) in source.text.lines().enumerate() {
            let found = BANNED.iter().filter(|(word, _)| line.contains(word));
            wrong.extend(found.map(|(word, why)| format!("src/{}:{}: {word}: {why}", source.path, at + 1)));
        }
    }
    check(wrong);
}

#[test]
fn files_say_what_they_are_for_and_stay_small() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.text.starts_with("//!") {
            wrong.push(format!("src/{}: begins with no //! line that says what it is for", source.path));
        }
        let lines = source.code.lines().count();
        if lines > MAX_FILE_LINES {
            wrong.push(format!("src/{}: {lines} lines, more than {MAX_FILE_LINES}: look for the seam", source.path));
        }
    }
    check(wrong);
}

#[test]
fn functions_stay_small() {
    let is_function = |line: &str| {
        let words: Vec<&str> =
            line.split_whitespace().take_while(|word| !word.contains('(') || word.starts_with("pub(")).collect();
        words.contains(&"fn")
            && words.iter().all(|word| word.starts_with("pub") || ["fn", "async", "const", "unsafe"].contains(word))
    };
    let mut wrong = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.code.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
            let indent = line.len() - line.trim_start().len();
            let close = format!("{}}}", &line[..indent]);
            let length = lines[at..].iter().position(|line| **line == close).unwrap_or(0);
            if length > MAX_FUNCTION_LINES {
                wrong.push(format!(
                    "src/{}:{}: a function of {length} lines, more than {MAX_FUNCTION_LINES}",
                    source.path,
                    at + 1
                ));
            }
        }
    }
    check(wrong);
}

#[test]
fn the_top_level_is_what_the_design_says() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "LICENSE",
        "README.md",
        "assets",
        "examples",
        "packaging",
        "rustfmt.toml",
        "src",
        "target",
        "tests",
    ];
    let mut wrong = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with('.') && !allowed.contains(&name.as_str()) {
            wrong.push(format!("{name} does not belong at the top level"));
        }
    }
    check(wrong);
}
