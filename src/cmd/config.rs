//! The configuration file: every flag of `orch server` and `orch agent`, under each of its names, is also a key of a YAML map, and a list
//! is a flag given several times. The command line wins over the environment, and the environment over the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Arg, CommandFactory};
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
    let Some(command) = cli.find_subcommand(&name).filter(|command| find(command, "config").is_some()) else {
        return Ok(arguments);
    };
    let given = value_of(&arguments, "config").or_else(|| std::env::var_os("ORCH_CONFIG").map(PathBuf::from));
    let path = given.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && given.is_none() => return Ok(arguments),
        Err(source) => return Err(ConfigError::Read { path, source }),
    };
    let present = |argument: &Arg| {
        let variable = argument.get_env().and_then(std::env::var_os);
        variable.is_some() || names(argument).any(|name| value_of(&arguments, name).is_some())
    };
    let added = flags(&path, &text, command, &present)?;
    arguments.extend(added);
    Ok(arguments)
}

/// The names of a flag: its own, and others that it also has.
fn names(argument: &Arg) -> impl Iterator<Item = &str> {
    argument.get_long_and_visible_aliases().into_iter().flatten()
}

fn find<'a>(command: &'a clap::Command, flag: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| names(argument).any(|name| name == flag))
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

fn flags(path: &Path, text: &str, command: &clap::Command, present: &dyn Fn(&Arg) -> bool) -> Result<Vec<OsString>, ConfigError> {
    let parse_error = |why: String| ConfigError::Parse { path: path.to_owned(), why };
    let map = match serde_yaml::from_str::<Value>(text).map_err(|error| parse_error(error.to_string()))? {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        _ => return Err(parse_error("its top level is not a map".to_owned())),
    };
    let mut flags = Vec::new();
    for (key, value) in map {
        let key = key.as_str().ok_or_else(|| parse_error("a key is not a text".to_owned()))?.to_owned();
        let Some(argument) = find(command, &key).filter(|_| key != "config") else {
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, command: command.get_name().to_owned() });
        };
        if present(argument) {
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
    use clap::Parser;

    use super::*;

    fn server_flags(text: &str, present: &[&str]) -> Result<Vec<String>, String> {
        let cli = Cli::command();
        let command = cli.find_subcommand("server").unwrap();
        let flags = flags(Path::new("c.yaml"), text, command, &|flag| names(flag).any(|name| present.contains(&name)))
            .map_err(|error| error.to_string())?;
        Ok(flags.into_iter().map(|flag| flag.into_string().unwrap()).collect())
    }

    #[test]
    fn keys_are_flags_and_the_command_line_wins() {
        let text = "data-dir: /d\nhttps-listen-port: 7443\ndisable-agent: true\nnode-label: [a=b, c=d]\n";
        let flags = server_flags(text, &["data-dir"]).unwrap();
        assert_eq!(flags, ["--https-listen-port=7443", "--disable-agent=true", "--node-label=a=b", "--node-label=c=d"]);
        assert_eq!(server_flags("", &[]).unwrap(), Vec::<String>::new());
    }

    /// Every flag in the three ways: the settings that come of them are the same.
    #[test]
    fn every_flag_is_a_variable_and_a_key_too() {
        for name in ["server", "agent"] {
            let mut cli = Cli::command();
            cli.build();
            let command = cli.find_subcommand(name).unwrap().clone();
            let skipped = ["config", "help", "version"];
            let flags: Vec<&Arg> = command.get_arguments().filter(|flag| !skipped.contains(&flag.get_long().unwrap())).collect();
            assert!(flags.len() > 20, "{name}");
            for flag in flags {
                let long = flag.get_long().unwrap();
                let variable = format!("ORCH_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(flag.get_env().and_then(|text| text.to_str()), Some(&*variable), "orch {name} --{long}");
                let value = sample(long, flag);
                let required = (name == "agent" && long != "join").then(|| "--join=https://h:1".to_owned());
                for key in names(flag) {
                    let yaml = format!("{key}: {value}\n");
                    let from_file = super::flags(Path::new("c.yaml"), &yaml, &command, &|_| false).unwrap();
                    let from_file = from_file.into_iter().map(|flag| flag.into_string().unwrap());
                    let parse = |flags: Vec<String>| {
                        let all = ["orch".to_owned(), name.to_owned()].into_iter().chain(flags).chain(required.clone());
                        let parsed = Cli::try_parse_from(all).unwrap_or_else(|error| panic!("orch {name} --{key}: {error}"));
                        format!("{:?}", parsed.command)
                    };
                    let given = parse(vec![format!("--{long}={value}")]);
                    assert_eq!(parse(from_file.collect()), given, "{key}");
                    assert_ne!(
                        given,
                        parse(if long == "join" { vec!["--join=x".to_owned()] } else { Vec::new() }),
                        "{key} is used"
                    );
                }
            }
        }
    }

    /// A value of a flag that is not its default.
    fn sample(long: &str, flag: &Arg) -> String {
        let possible = flag.get_possible_values();
        if let Some(last) = possible.last().filter(|_| long != "disable-agent") {
            return last.get_name().to_owned();
        }
        let text = match long {
            "disable-agent" => "true",
            "node-label" => "a=b",
            "container-log-max-size" => "1Mi",
            "container-log-max-files" => "3",
            "node-taint" => "a=b:NoSchedule",
            "service-node-port-range" => "31000-31999",
            "node-monitor-grace-period" | "eviction-pressure-transition-period" | "minimum-image-ttl-duration" => "25s",
            _ if long.ends_with("cidr") => "10.99.0.0/16",
            _ if long.ends_with("-ip") || long.ends_with("-address") || long.ends_with("-dns") => "10.9.8.7",
            _ if long.ends_with("-port") || long.ends_with("-seconds") => "1234",
            "image-gc-high-threshold"
            | "image-gc-low-threshold"
            | "max-pods"
            | "pod-max-pids"
            | "eviction-max-pod-grace-period" => "51",
            _ => "sample",
        };
        text.to_owned()
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
