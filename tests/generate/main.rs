//! Writes `assets/schema/`: the table of built-in types and their descriptions.
//!
//! Run by hand when the version of the API changes: `cargo test --features generate --test generate`. The table is joined from
//! the sources of two crates, k8s-openapi (names, types, required, descriptions, lists) and k8s-pb (protobuf tags), and the facts
//! that neither has, in `facts.rs`. The test fails if the files in the tree were not what it writes, after it wrote them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod facts;
mod openapi;
mod protobuf;
mod table;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The folder of a package's sources, as cargo resolved it.
fn sources(package: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--features", "generate", "--offline"])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let found = packages.iter().find(|entry| entry["name"] == package).expect("the package is resolved");
    Path::new(found["manifest_path"].as_str().expect("a path")).with_file_name("src")
}

fn compress(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).expect("memory takes bytes");
    encoder.finish().expect("memory takes bytes")
}

#[test]
fn schema_assets_are_current() {
    let mut types = openapi::read(&sources("k8s-openapi").join("v1_36"));
    let messages = protobuf::read(&sources("k8s-pb"));
    openapi::add_lists(&mut types);
    let missing = protobuf::join(&mut types, &messages);
    facts::apply(&mut types);
    let (table, descriptions) = table::print(&types);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/schema");
    let mut changed = Vec::new();
    for (name, bytes) in [("types.tsv", table.into_bytes()), ("descriptions.txt.gz", compress(&descriptions))] {
        let path = folder.join(name);
        if fs::read(&path).ok().as_ref() != Some(&bytes) {
            fs::write(&path, bytes).expect("the asset is written");
            changed.push(name);
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "fields without a protobuf tag: add them to TAGS in facts.rs");
    assert_eq!(changed, Vec::<&str>::new(), "these were out of date and have been written: commit them");
}
