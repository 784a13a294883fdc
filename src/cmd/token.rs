//! The token that joins agents, in k3s' form: `K10<hash of the CA>::node:<secret>`, or the secret alone. With the hash, an agent
//! verifies the server before it sends anything.

use std::fmt;
use std::path::Path;

use crate::rt::{files, random};

const SECURE_PREFIX: &str = "K10";
const USER: &str = "node";

/// A token, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the CA's public key, hexadecimal.
    pub ca_fingerprint: Option<String>,
    pub secret: String,
}

impl Token {
    /// Takes a token apart.
    ///
    /// # Errors
    /// When it begins as the secure form and is none: half of it was copied.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((hash, rest)) = text.split_once("::") else {
            return if text.is_empty() {
                Err("the token is empty".to_owned())
            } else {
                Ok(Self { ca_fingerprint: None, secret: text.to_owned() })
            };
        };
        let hash =
            hash.strip_prefix(SECURE_PREFIX).filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let secret = rest.split_once(':').map_or(rest, |(_, secret)| secret);
        match hash {
            Some(hash) if !secret.is_empty() => Ok(Self { ca_fingerprint: Some(hash.to_owned()), secret: secret.to_owned() }),
            _ => Err("the token is not whole: copy all of DATA_DIR/token of a server".to_owned()),
        }
    }

    /// The secret of this cluster: the one given, else the one kept in `path`, else a new one. The secure form is kept in `path`.
    ///
    /// # Errors
    /// When the file cannot be read or written, or the given token is malformed.
    pub fn of_server(path: &Path, given: Option<&str>, ca_fingerprint: &str) -> Result<Self, String> {
        let unusable = |error: std::io::Error| format!("cannot use {}: {error}", path.display());
        let kept = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(unusable(error)),
        };
        let secret = match given.or(kept.as_deref()) {
            Some(text) => Self::parse(text)?.secret,
            None => random::suffix(32),
        };
        let token = Self { ca_fingerprint: Some(ca_fingerprint.to_owned()), secret };
        let text = format!("{token}\n");
        if kept.as_ref() != Some(&text) {
            files::write(path, text.as_bytes(), 0o600).map_err(unusable)?;
        }
        Ok(token)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.ca_fingerprint {
            Some(hash) => write!(formatter, "{SECURE_PREFIX}{hash}::{USER}:{}", self.secret),
            None => formatter.write_str(&self.secret),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_parse_and_half_a_token_does_not() {
        let hash = "ab".repeat(32);
        let secure = format!("K10{hash}::node:secret");
        let parsed = Token::parse(&format!(" {secure}\n")).unwrap();
        assert_eq!((parsed.ca_fingerprint.as_deref(), parsed.secret.as_str()), (Some(hash.as_str()), "secret"));
        assert_eq!(parsed.to_string(), secure);
        assert_eq!(Token::parse("plain").unwrap(), Token { ca_fingerprint: None, secret: "plain".to_owned() });
        for wrong in ["", "K10abc::node:x", &format!("K10{hash}::node:"), "x::y"] {
            assert!(Token::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_server_keeps_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let hash = "ff".repeat(32);
        let first = Token::of_server(&path, None, &hash).unwrap();
        assert_eq!(Token::of_server(&path, None, &hash).unwrap(), first);
        assert_eq!(Token::of_server(&path, Some("given"), &hash).unwrap().secret, "given");
    }
}
