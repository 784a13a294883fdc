//! The file by which clients find and trust a cluster: `~/.kube/config`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

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
    }
}
