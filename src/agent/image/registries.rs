//! The registries file: mirrors, credentials and certificate authorities, in k3s' form (`/etc/orch/registries.yaml`).
//!
//! ```yaml
//! mirrors:
//!   docker.io: {endpoint: ["https://mirror.example:5000"], rewrite: {"^library/(.*)": "hub/$1"}}
//!   "*": {endpoint: ["https://cache.example"]}
//! configs:
//!   mirror.example:5000:
//!     auth: {username: u, password: p}
//!     tls: {ca_file: /etc/ssl/mirror.crt, cert_file: /etc/ssl/node.crt, key_file: /etc/ssl/node.key}
//! ```
//!
//! Docker does the pulling: what a mirror holds is pulled by the mirror's name and then given the name that was asked for, and
//! certificates are put where Docker looks for them. That a registry speaks plain HTTP is for Docker's own configuration to say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde::Deserialize;

use super::registry_of;
use crate::cri::RegistryAuth;
use crate::rt::files;

/// Where Docker looks for the certificates of registries.
const DOCKER_CERTIFICATES: &str = "/etc/docker/certs.d";

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registries {
    #[serde(default)]
    mirrors: BTreeMap<String, Mirror>,
    #[serde(default)]
    configs: BTreeMap<String, Settings>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[serde(default)]
    endpoint: Vec<String>,
    /// Regular expressions over the repository, and what takes its place.
    #[serde(default)]
    rewrite: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    auth: Option<Login>,
    tls: Option<Tls>,
}

#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    /// `username:password` in base64.
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identity_token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a registries file: {why}")]
    Parse { path: PathBuf, why: String },
    #[error("cannot give Docker the certificates of {registry}: {why}")]
    Certificates { registry: String, why: String },
}

impl Registries {
    /// Reads the file; without one there is nothing to say.
    ///
    /// # Errors
    /// [`RegistriesError`] with the path and what is wrong.
    pub fn read(path: &Path) -> Result<Self, RegistriesError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(RegistriesError::Read { path: path.to_owned(), source }),
        };
        let parsed = Self::parse(&text).map_err(|why| RegistriesError::Parse { path: path.to_owned(), why })?;
        parsed.install_certificates(Path::new(DOCKER_CERTIFICATES))?;
        Ok(parsed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let parsed: Option<Self> = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let parsed = parsed.unwrap_or_default();
        for (name, mirror) in &parsed.mirrors {
            for pattern in mirror.rewrite.keys() {
                Regex::new(pattern).map_err(|error| format!("mirrors.{name}.rewrite: {error}"))?;
            }
        }
        Ok(parsed)
    }

    /// The names to pull an image by, in order: those of its mirrors, then its own.
    pub fn sources(&self, image: &str) -> Vec<String> {
        let registry = registry_of(image);
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mut sources: Vec<String> = Vec::new();
        if let Some(mirror) = mirror {
            let repository = mirror.rewritten(&repository_of(image));
            let endpoints = mirror.endpoint.iter().map(|endpoint| host_of(endpoint)).filter(|host| *host != registry);
            sources.extend(endpoints.map(|host| format!("{host}/{repository}")));
        }
        sources.push(image.to_owned());
        sources
    }

    /// The credentials that the file has for the registry of an image.
    pub fn login(&self, image: &str) -> Option<RegistryAuth> {
        let registry = registry_of(image);
        let login = self.configs.get(registry)?.auth.as_ref()?;
        let (mut username, mut password) = (login.username.clone(), login.password.clone());
        if username.is_empty()
            && let Some((user, pass)) = super::decode_pair(&login.auth)
        {
            (username, password) = (user, pass);
        }
        Some(RegistryAuth {
            username,
            password,
            server_address: registry.to_owned(),
            identity_token: login.identity_token.clone(),
        })
    }

    fn install_certificates(&self, root: &Path) -> Result<(), RegistriesError> {
        for (registry, settings) in &self.configs {
            let Some(tls) = &settings.tls else { continue };
            let wanted =
                [("ca.crt", &tls.ca_file, 0o644), ("client.cert", &tls.cert_file, 0o644), ("client.key", &tls.key_file, 0o600)];
            for (name, from, mode) in wanted {
                let Some(from) = from else { continue };
                let failed = |why: String| RegistriesError::Certificates { registry: registry.clone(), why };
                let content = std::fs::read(from).map_err(|error| failed(format!("{}: {error}", from.display())))?;
                let to = root.join(registry).join(name);
                if std::fs::read(&to).is_ok_and(|present| present == content) {
                    continue;
                }
                files::write(&to, &content, mode).map_err(|error| failed(format!("{}: {error}", to.display())))?;
            }
        }
        Ok(())
    }
}

impl Mirror {
    fn rewritten(&self, repository: &str) -> String {
        let found = self
            .rewrite
            .iter()
            .find_map(|(pattern, to)| Some((Regex::new(pattern).ok()?, to)).filter(|(regex, _)| regex.is_match(repository)));
        found.map_or_else(|| repository.to_owned(), |(regex, to)| regex.replace(repository, to.as_str()).into_owned())
    }
}

/// What follows the registry in an image's name: `library/nginx:1.14` of `nginx:1.14`.
fn repository_of(image: &str) -> String {
    let registry = registry_of(image);
    match image.strip_prefix(registry).and_then(|rest| rest.strip_prefix('/')) {
        Some(rest) => rest.to_owned(),
        None if image.contains('/') => image.to_owned(),
        None => format!("library/{image}"),
    }
}

fn host_of(endpoint: &str) -> &str {
    let host = endpoint.trim_start_matches("https://").trim_start_matches("http://");
    host.trim_end_matches('/').trim_end_matches("/v2")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
mirrors:
  docker.io: {endpoint: ["https://m.example:5000/v2", "http://n.example"], rewrite: {"^library/(.*)": "hub/$1"}}
  "*": {endpoint: ["https://cache.example"]}
configs:
  m.example:5000: {auth: {auth: dTpwOnE=}}
"#;

    #[test]
    fn mirrors_come_first_and_the_name_itself_last() {
        let registries = Registries::parse(FILE).unwrap();
        for (image, expected) in [
            ("nginx:1.14", &["m.example:5000/hub/nginx:1.14", "n.example/hub/nginx:1.14", "nginx:1.14"][..]),
            ("me/app@sha256:ab", &["m.example:5000/me/app@sha256:ab", "n.example/me/app@sha256:ab", "me/app@sha256:ab"]),
            ("quay.io/a/b", &["cache.example/a/b", "quay.io/a/b"]),
            ("cache.example/a/b", &["cache.example/a/b"]),
        ] {
            assert_eq!(registries.sources(image), expected, "{image}");
        }
        let login = registries.login("m.example:5000/hub/nginx:1.14").unwrap();
        assert_eq!((login.username.as_str(), login.password.as_str()), ("u", "p:q"));
        assert!(registries.login("nginx").is_none() && !format!("{registries:?}").contains("dTpw"));
        assert_eq!(Registries::parse("").unwrap().sources("nginx"), ["nginx"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("mirror: {}", "unknown field `mirror`"),
            ("mirrors: {a: {endpoints: []}}", "unknown field `endpoints`"),
            ("mirrors: {a: {rewrite: {\"(\": x}}}", "mirrors.a.rewrite"),
        ] {
            let why = Registries::parse(text).unwrap_err();
            assert!(why.contains(expected), "{text}: {why}");
        }
    }

    #[test]
    fn certificates_are_put_where_docker_looks() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca");
        std::fs::write(&ca, "CERT").unwrap();
        let text = format!("configs: {{\"r.example:5000\": {{tls: {{ca_file: {}}}}}}}", ca.display());
        let registries = Registries::parse(&text).unwrap();
        registries.install_certificates(&folder.path().join("certs.d")).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join("certs.d/r.example:5000/ca.crt")).unwrap(), "CERT");
        std::fs::remove_file(ca).unwrap();
        assert!(registries.install_certificates(folder.path()).unwrap_err().to_string().contains("r.example:5000"));
    }
}
