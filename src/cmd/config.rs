//! The configuration file: every flag of `orch server` and `orch agent` is also a key of a YAML map, and a list is a flag given
//! several times. The command line wins over the environment, and the environment over the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde_yaml::Value;

use super::Cli;

/// Read when `--config` and `ORCH_CONFIG` name no other; it need not exist.
pub const DEFAULT_PATH: &str = "/etc/orch/config.yaml";

/// Why the configuration file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration file {path} is not a YAML map of flags: {why}")]
    Parse { path: PathBuf, why: String },
    #[error(
        "the configuration file {path} has an unknown key {key:?}; `orch {command} --help` lists the keys (a flag without its dashes)"
    )]
    UnknownKey { path: PathBuf, key: String, command: String },
    #[error("the configuration file {path}: the value of {key:?} must be a text, number, boolean or a list of them")]
    Value { path: PathBuf, key: String },
}

/// Appends the flags of the configuration file that neither the command line nor the environment gives.
///
/// # Errors
/// [`ConfigError`] with the path and the key.
pub fn expand(mut arguments: Vec<OsString>) -> Result<Vec<OsString>, ConfigError> {
    let Some(name) = arguments.get(1).and_then(|name| name.to_str()).map(str::to_owned) else { return Ok(arguments) };
    let cli = Cli::command();
    let Some(command) = cli.find_subcommand(&name).filter(|command| has_flag(command, "config")) else { return Ok(arguments) };
    let given = value_of(&arguments, "config").or_else(|| std::env::var_os("ORCH_CONFIG").map(PathBuf::from));
    let path = given.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && given.is_none() => return Ok(arguments),
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    let present = |key: &str| value_of(&arguments, key).is_some() || std::env::var_os(variable(key)).is_some();
    let added = flags(&path, &text, command, &present)?;
    arguments.extend(added);
    Ok(arguments)
}

/// The environment variable of a flag: `data-dir` is `ORCH_DATA_DIR`.
fn variable(flag: &str) -> String {
    format!("ORCH_{}", flag.replace('-', "_").to_uppercase())
}

fn has_flag(command: &clap::Command, flag: &str) -> bool {
    command.get_arguments().any(|argument| argument.get_long() == Some(flag))
}

/// The value of `--flag VALUE` or `--flag=VALUE`; "" for a switch.
fn value_of(arguments: &[OsString], flag: &str) -> Option<PathBuf> {
    let long = format!("--{flag}");
    let at = arguments
        .iter()
        .position(|argument| argument.to_str().is_some_and(|text| text == long || text.starts_with(&format!("{long}="))))?;
    let inline = arguments[at].to_str().and_then(|text| text.split_once('=')).map(|(_, value)| PathBuf::from(value));
    Some(inline.or_else(|| arguments.get(at + 1).map(PathBuf::from)).unwrap_or_default())
}

fn flags(path: &Path, text: &str, command: &clap::Command, present: &dyn Fn(&str) -> bool) -> Result<Vec<OsString>, ConfigError> {
    let parse_error = |why: String| ConfigError::Parse { path: path.to_owned(), why };
    let map = match serde_yaml::from_str::<Value>(text).map_err(|error| parse_error(error.to_string()))? {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        _ => return Err(parse_error("its top level is not a map".to_owned())),
    };
    let mut flags = Vec::new();
    for (key, value) in map {
        let key = key.as_str().ok_or_else(|| parse_error("a key is not a text".to_owned()))?.to_owned();
        if key == "config" || !has_flag(command, &key) {
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, command: command.get_name().to_owned() });
        }
        if present(&key) {
            continue;
        }
        let values = if let Value::Sequence(list) = value { list } else { vec![value] };
        for value in values {
            flags.push(flag(path, &key, &value)?.into());
        }
    }
    Ok(flags)
}

fn flag(path: &Path, key: &str, value: &Value) -> Result<String, ConfigError> {
    Ok(match value {
        Value::Bool(value) => format!("--{key}={value}"),
        Value::Number(value) => format!("--{key}={value}"),
        Value::String(value) => format!("--{key}={value}"),
        _ => return Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned() }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_flags(text: &str, present: &[&str]) -> Result<Vec<String>, String> {
        let cli = Cli::command();
        let command = cli.find_subcommand("server").unwrap();
        let flags =
            flags(Path::new("c.yaml"), text, command, &|key| present.contains(&key)).map_err(|error| error.to_string())?;
        Ok(flags.into_iter().map(|flag| flag.into_string().unwrap()).collect())
    }

    #[test]
    fn keys_are_flags_and_the_command_line_wins() {
        let text = "data-dir: /d\nhttps-listen-port: 7443\ndisable-agent: true\nnode-label: [a=b, c=d]\n";
        let flags = server_flags(text, &["data-dir"]).unwrap();
        assert_eq!(flags, ["--https-listen-port=7443", "--disable-agent=true", "--node-label=a=b", "--node-label=c=d"]);
        assert_eq!(server_flags("", &[]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn errors_name_the_file_and_the_key() {
        for (text, expected) in [
            ("nodename: x", "unknown key \"nodename\""),
            ("[1]", "not a map"),
            ("data-dir: {a: b}", "\"data-dir\" must be"),
            ("a: [", "is not a YAML map"),
        ] {
            let error = server_flags(text, &[]).unwrap_err();
            assert!(error.contains(expected) && error.contains("c.yaml"), "{text}: {error}");
        }
    }
}
