//! JSON Web Tokens: ES256 signing and verifying (RFC 7515, 7518, 7519), and the key set that others verify with.
//!
//! The algorithm is the key's, never the token's word alone. Claims are JSON; what they mean is `auth`'s matter.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use ring::{digest, rand};
use serde_json::{Value, json};

use super::PkiError;

/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("not a JSON web token")]
    Malformed,
    #[error("signed with an unknown key")]
    UnknownKey,
    #[error("the signature is wrong")]
    Signature,
}

/// A P-256 key that signs tokens.
pub struct SigningKey {
    pem: String,
    kid: String,
    pair: EcdsaKeyPair,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// Only when the machine cannot make one.
    pub fn generate() -> Result<Self, PkiError> {
        Self::from_pem(&KeyPair::generate().map_err(PkiError::Key)?.serialize_pem())
    }

    /// The key of a PKCS#8 PEM text.
    ///
    /// # Errors
    /// When it is no P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(pem).map_err(PkiError::Key)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &SystemRandom::new())
            .map_err(|_| PkiError::Key(rcgen::Error::CouldNotParseKeyPair))?;
        let kid = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &key.subject_public_key_info()));
        Ok(Self { pem: pem.to_owned(), kid, pair })
    }

    /// The key as PKCS#8 PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The name of the key in token headers, as upstream derives it: SHA-256 of the public key.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Signs claims.
    ///
    /// # Errors
    /// Only when the random number generator fails.
    pub fn sign(&self, claims: &Value) -> Result<String, TokenError> {
        let header = json!({"alg": "ES256", "kid": self.kid});
        let input = format!("{}.{}", encode(&header), encode(claims));
        let random: &dyn rand::SecureRandom = &SystemRandom::new();
        let signature = self.pair.sign(random, input.as_bytes()).map_err(|_| TokenError::Signature)?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key signed. Says nothing about time, audience or issuer.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str) -> Result<Value, TokenError> {
        let parts = Parts::split(token)?;
        if parts.header["alg"] != "ES256" {
            return Err(TokenError::UnknownKey);
        }
        if parts.header["kid"].as_str().is_some_and(|kid| kid != self.kid) {
            return Err(TokenError::UnknownKey);
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref());
        key.verify(parts.signed.as_bytes(), &parts.signature).map_err(|_| TokenError::Signature)?;
        Ok(parts.claims)
    }

    /// The public half as a JSON Web Key.
    pub fn jwk(&self) -> Value {
        // An uncompressed point: 4, then 32 bytes each of x and y.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..65).unwrap_or(&[]).split_at_checked(32).unwrap_or((&[], &[]));
        json!({
            "use": "sig", "kty": "EC", "kid": self.kid, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

/// The issuer that an unverified token names, to tell which authenticator it is for.
pub fn unverified_issuer(token: &str) -> Option<String> {
    Parts::split(token).ok()?.claims["iss"].as_str().map(str::to_owned)
}

struct Parts<'a> {
    header: Value,
    claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Parts<'a> {
    fn split(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let bytes = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed);
        let object = |text: &str| {
            serde_json::from_slice::<Value>(&bytes(text)?).ok().filter(Value::is_object).ok_or(TokenError::Malformed)
        };
        Ok(Self { header: object(header)?, claims: object(claims)?, signed, signature: bytes(signature)? })
    }
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unchanged_token_of_this_key_verifies() {
        let (key, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let claims = json!({"iss": "https://a", "sub": "b"});
        let token = key.sign(&claims).unwrap();
        assert_eq!(key.verify(&token), Ok(claims.clone()));
        assert_eq!(unverified_issuer(&token).as_deref(), Some("https://a"));
        assert_eq!(other.verify(&token), Err(TokenError::UnknownKey));
        let parts: Vec<&str> = token.split('.').collect();
        let forged_claims = encode(&json!({"iss": "https://a", "sub": "root"}));
        let no_algorithm = encode(&json!({"alg": "none"}));
        let table = [
            (format!("{}.{forged_claims}.{}", parts[0], parts[2]), TokenError::Signature),
            (format!("{no_algorithm}.{}.", parts[1]), TokenError::UnknownKey),
            (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
            (parts[..2].join("."), TokenError::Malformed),
            ("a".to_owned(), TokenError::Malformed),
            ("a".repeat(MAX_TOKEN_BYTES + 1), TokenError::Malformed),
        ];
        for (token, error) in table {
            assert_eq!(key.verify(&token), Err(error), "{token}");
        }
    }

    #[test]
    fn the_public_key_has_both_coordinates() {
        let jwk = SigningKey::generate().unwrap().jwk();
        assert_eq!((jwk["x"].as_str().map(str::len), jwk["y"].as_str().map(str::len)), (Some(43), Some(43)));
    }
}
