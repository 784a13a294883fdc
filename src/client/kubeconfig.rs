//! The file by which clients find and trust a cluster: `~/.kube/config`.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use crate::http::tls::{self, Trust};
use crate::rt::files;

/// One cluster and one user, everything embedded.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    /// Name of cluster, user and context.
    pub name: String,
    /// `https://host:port`.
    pub server: String,
    pub ca_pem: String,
    pub client_certificate_pem: String,
    pub client_key_pem: String,
}

impl Kubeconfig {
    /// The YAML.
    pub fn to_yaml(&self) -> String {
        let name = &self.name;
        let encode = |text: &str| STANDARD.encode(text);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "preferences": {},
            "clusters": [{"name": name, "cluster": {"server": self.server, "certificate-authority-data": encode(&self.ca_pem)}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "users": [{"name": name, "user": {
                "client-certificate-data": encode(&self.client_certificate_pem),
                "client-key-data": encode(&self.client_key_pem),
            }}],
        });
        // Serializing maps, lists and texts does not fail; JSON, which is YAML too, stands in all the same.
        serde_yaml::to_string(&config).unwrap_or_else(|_| config.to_string())
    }

    /// Writes the file, readable by its owner only. It appears whole or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        files::write(path, self.to_yaml().as_bytes(), 0o600)
    }
}

/// A text as it is embedded.
pub fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

/// What the current context of a kubeconfig says.
#[derive(Debug, Clone)]
pub struct Access {
    /// `https://host:port`.
    pub server: String,
    pub trust: Trust,
    /// Certificate chain and key, PEM.
    pub identity: Option<(String, String)>,
    pub token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    current_context: String,
    contexts: Vec<Named>,
    clusters: Vec<Named>,
    users: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    context: Option<Context>,
    cluster: Option<Cluster>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: Option<String>,
    certificate_authority: Option<PathBuf>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: Option<String>,
    client_certificate: Option<PathBuf>,
    client_key_data: Option<String>,
    client_key: Option<PathBuf>,
    token: Option<String>,
    token_file: Option<PathBuf>,
}

impl Access {
    /// Reads a kubeconfig.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(".")))
    }

    /// Reads the text of a kubeconfig; files that it names are relative to `folder`.
    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let file: File = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let named = |all: &[Named], what: &str, name: &str| -> Result<usize, String> {
            all.iter().position(|one| one.name == name).ok_or_else(|| format!("it has no {what} {name:?}"))
        };
        let at = named(&file.contexts, "context", &file.current_context)?;
        let context = file.contexts[at].context.as_ref().ok_or("a context is empty")?;
        let cluster = file.clusters[named(&file.clusters, "cluster", &context.cluster)?].cluster.clone();
        let cluster = cluster.ok_or("a cluster is empty")?;
        let user = file.users[named(&file.users, "user", &context.user)?].user.clone().ok_or("a user is empty")?;
        let trust = match embedded(cluster.certificate_authority_data, cluster.certificate_authority, folder)? {
            _ if cluster.insecure_skip_tls_verify => Trust::Insecure,
            Some(pem) => Trust::Roots(pem),
            None => Trust::System,
        };
        let chain = embedded(user.client_certificate_data, user.client_certificate, folder)?;
        let key = embedded(user.client_key_data, user.client_key, folder)?;
        let token = match (user.token, user.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => Some(read(&folder.join(path))?.trim().to_owned()),
            (None, None) => None,
        };
        Ok(Self { server: cluster.server, trust, identity: chain.zip(key), token })
    }

    /// SHA-256 of the public key of the cluster's CA, if the file has it.
    pub fn ca_fingerprint(&self) -> Option<String> {
        let Trust::Roots(pem) = &self.trust else { return None };
        tls::fingerprint(pem)
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// A text that is embedded or in a file.
fn embedded(data: Option<String>, file: Option<PathBuf>, folder: &Path) -> Result<Option<String>, String> {
    match (data.filter(|data| !data.is_empty()), file) {
        (Some(data), _) => {
            let bytes = STANDARD.decode(data.trim()).map_err(|error| error.to_string())?;
            String::from_utf8(bytes).map(Some).map_err(|error| error.to_string())
        }
        (None, Some(file)) => read(&folder.join(file)).map(Some),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_embedded() {
        let text = |text: &str| text.to_owned();
        let config = Kubeconfig {
            name: text("default"),
            server: text("https://127.0.0.1:6443"),
            ca_pem: text("CA"),
            client_certificate_pem: text("CERT"),
            client_key_pem: text("KEY"),
        };
        let parsed: serde_yaml::Value = serde_yaml::from_str(&config.to_yaml()).unwrap();
        assert_eq!(parsed["clusters"][0]["cluster"]["certificate-authority-data"], STANDARD.encode("CA"));
        assert_eq!(parsed["contexts"][0]["context"]["user"], parsed["users"][0]["name"]);
        let access = Access::parse(&config.to_yaml(), Path::new("/")).unwrap();
        assert_eq!((access.server.as_str(), access.trust), ("https://127.0.0.1:6443", Trust::Roots(text("CA"))));
        assert_eq!(access.identity, Some((text("CERT"), text("KEY"))));
    }

    #[test]
    fn files_are_relative_and_errors_say_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "t0ken\n").unwrap();
        let parse = |context: &str| {
            let text = format!(
                "current-context: {context}\ncontexts: [{{name: a, context: {{cluster: c, user: u}}}}]\nclusters: [{{name: c, cluster: {{server: 'https://x:1'}}}}]\nusers: [{{name: u, user: {{token-file: token}}}}]\n"
            );
            Access::parse(&text, folder.path())
        };
        let access = parse("a").unwrap();
        assert_eq!((access.token.as_deref(), access.trust), (Some("t0ken"), Trust::System));
        assert_eq!(parse("b").unwrap_err(), "it has no context \"b\"");
    }
}
