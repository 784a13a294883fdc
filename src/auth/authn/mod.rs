//! Authentication: client certificate, then bearer token (service account, bootstrap token, static token), then anonymous.
//!
//! Whoever shows a credential that is wrong gets 401; only who shows none is `system:anonymous`.

use std::sync::Arc;

use jiff::Timestamp;

use super::UserInfo;
use super::tokens::TokenIssuer;
use crate::pki::{Certificate, PkiError};
use crate::rt::clock::SharedClock;
use crate::store::Store;

mod bootstrap_token;
mod cache;

pub use bootstrap_token::parse as parse_bootstrap_token;

/// A token that is known from the start, and whose it is.
#[derive(Clone)]
pub struct StaticToken {
    pub token: String,
    pub user: UserInfo,
}

/// What authentication is made of.
pub struct AuthnConfig {
    pub store: Arc<dyn Store>,
    pub tokens: Arc<TokenIssuer>,
    pub static_tokens: Vec<StaticToken>,
    /// Whether a request without credentials is let through as `system:anonymous`.
    pub anonymous: bool,
    pub clock: SharedClock,
}

/// The user that a client certificate names, worked out once a connection.
#[derive(Debug, Clone)]
pub struct CertificateUser {
    user: Arc<UserInfo>,
    not_after: Timestamp,
}

impl CertificateUser {
    /// Common name and organizations of a certificate (DER) whose chain has been verified.
    ///
    /// # Errors
    /// When it does not parse.
    pub fn of(der: &[u8]) -> Result<Option<Self>, PkiError> {
        let certificate = Certificate::parse(der)?;
        if certificate.common_name.is_empty() {
            return Ok(None);
        }
        let user = UserInfo {
            name: certificate.common_name,
            uid: certificate.uid,
            groups: certificate.organizations,
            ..UserInfo::default()
        };
        Ok(Some(Self { user: Arc::new(user.authenticated()), not_after: certificate.not_after }))
    }
}

/// What a request shows of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The user of a verified client certificate.
    pub certificate: Option<&'a CertificateUser>,
    /// A certificate was shown that is not of the client CA, or no longer valid.
    pub bad_certificate: bool,
    /// The token behind `Authorization: Bearer`.
    pub bearer: Option<&'a str>,
}

/// Who is asking could not be told: 401. The reason is for the log, never for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unauthenticated(pub String);

/// Finds out who is asking.
pub struct Authenticator {
    config: AuthnConfig,
    verified: cache::Cache,
}

impl Authenticator {
    /// An authenticator.
    pub fn new(config: AuthnConfig) -> Self {
        Self { config, verified: cache::Cache::default() }
    }

    /// Who is asking.
    ///
    /// # Errors
    /// [`Unauthenticated`] when a credential was shown and is wrong, or none was and anonymous requests are off.
    pub fn authenticate(&self, credentials: Credentials<'_>) -> Result<Arc<UserInfo>, Unauthenticated> {
        if let Some(certificate) = credentials.certificate
            && certificate.not_after > self.config.clock.now()
        {
            return Ok(Arc::clone(&certificate.user));
        }
        if let Some(token) = credentials.bearer.filter(|token| !token.is_empty()) {
            return self.token(token);
        }
        if credentials.certificate.is_some() || credentials.bad_certificate {
            return Err(Unauthenticated("the client certificate is not valid".to_owned()));
        }
        if self.config.anonymous {
            return Ok(Arc::new(UserInfo::anonymous()));
        }
        Err(Unauthenticated("no credentials".to_owned()))
    }

    /// The user of a bearer token for the API server.
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub fn token(&self, token: &str) -> Result<Arc<UserInfo>, Unauthenticated> {
        // Looking these up is cheap, and they end when they end.
        if !self.config.tokens.is_ours(token) {
            return Ok(Arc::new(self.token_for(token, &[])?.0.authenticated()));
        }
        let store = &self.config.store;
        let mark = cache::Mark::of(&store.snapshot());
        let now = self.config.clock.now();
        if let Some(user) = self.verified.get(token, &mark, now) {
            return Ok(user);
        }
        let user = Arc::new(self.token_for(token, &[])?.0.authenticated());
        self.verified.put(token, mark, now, &user);
        Ok(user)
    }

    /// The user of a token, and for which of `audiences` it is good (empty: those of the API server). For token reviews.
    ///
    /// # Errors
    /// [`Unauthenticated`].
    pub fn token_for(&self, token: &str, audiences: &[String]) -> Result<(UserInfo, Vec<String>), Unauthenticated> {
        let Self { config: AuthnConfig { store, tokens, static_tokens, clock, .. }, .. } = self;
        if tokens.is_ours(token) {
            let verified = tokens.verify(token, audiences, &**store).map_err(|error| Unauthenticated(error.to_string()))?;
            return Ok((verified.user, verified.audiences));
        }
        // Other tokens know no audience; they are good for the API server alone.
        let own = tokens.api_audiences();
        let common: Vec<String> = match audiences {
            [] => own.to_vec(),
            wanted => wanted.iter().filter(|audience| own.contains(audience)).cloned().collect(),
        };
        if common.is_empty() {
            return Err(Unauthenticated(format!("the token is for {own:?}, not for {audiences:?}")));
        }
        // The token that joins machines may have been changed since this server started.
        let snapshot = store.snapshot();
        let is_changed_to = bootstrap_token::is_cluster_token(token, &snapshot);
        let is = |one: &&StaticToken| match is_changed_to.filter(|_| one.user.is_in("system:bootstrappers")) {
            Some(is_it) => is_it,
            None => same_secret(&one.token, token),
        };
        if let Some(found) = static_tokens.iter().find(is) {
            return Ok((found.user.clone(), common));
        }
        if let Some(user) = bootstrap_token::authenticate(token, &snapshot, clock.now())? {
            return Ok((user, common));
        }
        Err(Unauthenticated("an unknown token".to_owned()))
    }
}

/// Compares secrets in a time that tells nothing of them.
fn same_secret(one: &str, other: &str) -> bool {
    let hash = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    hash(one).as_ref() == hash(other).as_ref()
}

#[cfg(test)]
mod tests;
