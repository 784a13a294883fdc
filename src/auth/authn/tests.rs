//! Authentication against a store in memory.

use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::*;
use crate::auth::authz::tests::memory_with;
use crate::pki::Pki;
use crate::pki::jwt::SigningKey;
use crate::rt::clock::{Clock, FakeClock};

fn bootstrap(fields: &[(&str, &str)]) -> Value {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let mut data = json!({"token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"), "usage-bootstrap-authentication": encode("true")});
    for (name, text) in fields {
        data[*name] = json!(encode(text));
    }
    json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "data": data})
}

async fn authenticator(secret: Value) -> (Authenticator, Arc<FakeClock>) {
    let clock = FakeClock::new("2026-01-01T00:00:00Z".parse().unwrap());
    let store = memory_with(&[("core/secrets/kube-system/bootstrap-token-abcdef", secret)]).await;
    let tokens = Arc::new(TokenIssuer::new(Arc::new(SigningKey::generate().unwrap()), "c.local", clock.clone()));
    let static_tokens = vec![StaticToken { token: "s3cret".to_owned(), user: UserInfo::new("joiner", &["g"]) }];
    let config = AuthnConfig { store, tokens, static_tokens, anonymous: true, clock: clock.clone() };
    (Authenticator::new(config), clock)
}

#[tokio::test]
async fn bearer_tokens() {
    let (authenticator, _) = authenticator(bootstrap(&[("auth-extra-groups", "system:bootstrappers:x")])).await;
    let groups = |token: &str| authenticator.token(token).map(|user| (user.name.clone(), user.groups.join(",")));
    assert_eq!(groups("s3cret"), Ok(("joiner".to_owned(), "g,system:authenticated".to_owned())));
    let expected = "system:bootstrappers,system:bootstrappers:x,system:authenticated";
    assert_eq!(groups("abcdef.0123456789abcdef"), Ok(("system:bootstrap:abcdef".to_owned(), expected.to_owned())));
    for wrong in ["s3cre", "abcdef.0123456789abcdee", "abcdeg.0123456789abcdef", "x.y.z"] {
        assert!(groups(wrong).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn bootstrap_tokens_that_are_no_good() {
    for fields in [
        [("expiration", "2025-12-31T23:59:59Z")],
        [("expiration", "soon")],
        [("usage-bootstrap-authentication", "false")],
        [("auth-extra-groups", "system:masters")],
        [("token-id", "zzzzzz")],
    ] {
        let (authenticator, _) = authenticator(bootstrap(&fields)).await;
        assert!(authenticator.token("abcdef.0123456789abcdef").is_err(), "{fields:?}");
    }
}

#[tokio::test]
async fn certificates_and_none() {
    let (authenticator, clock) = authenticator(Value::Null).await;
    let identity = Pki::generate(clock.now()).unwrap().client("jane", "dev", clock.now()).unwrap();
    let der = crate::pki::pem_blocks(&identity.chain_pem, "CERTIFICATE").unwrap().swap_remove(0);
    let jane = CertificateUser::of(&der).unwrap().unwrap();
    let shown = Credentials { certificate: Some(&jane), ..Credentials::default() };
    assert_eq!(*authenticator.authenticate(shown).unwrap(), UserInfo::new("jane", &["dev", "system:authenticated"]));
    assert_eq!(*authenticator.authenticate(Credentials::default()).unwrap(), UserInfo::anonymous());
    let bad = Credentials { bad_certificate: true, ..Credentials::default() };
    assert!(authenticator.authenticate(bad).is_err());
    let token = Credentials { bearer: Some("wrong"), ..Credentials::default() };
    assert!(authenticator.authenticate(token).is_err());
    clock.advance(Duration::from_secs(366 * 86_400));
    assert!(authenticator.authenticate(shown).is_err(), "expired");
}
