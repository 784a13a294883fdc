//! A server over a store in memory, asked as a client would.

use std::sync::Arc;

use ::http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::*;
use crate::admission::Chain;
use crate::auth::{AUTHENTICATED, Attributes};
use crate::http::tls::Trust;
use crate::kinds::Kinds;
use crate::pki::Pki;
use crate::registry::Reader;
use crate::rt::SystemClock;
use crate::store::memory::MemoryStore;

/// A whole server with nothing in it.
pub(crate) fn server() -> Arc<Server> {
    let clock: SharedClock = Arc::new(SystemClock);
    let store = MemoryStore::new(Arc::clone(&clock));
    let authorizer = Arc::new(Authorizer::new(store.clone()));
    let admit = Arc::new(Chain::new(Reader::new(store.clone()), Arc::clone(&authorizer)));
    let registry = Registry::new(store, Arc::new(Kinds::builtin()), admit, Arc::clone(&clock));
    let pki = Pki::generate(clock.now()).unwrap();
    let node_tls = ClientTls::new(&Trust::Roots(pki.server_ca.certificate_pem().to_owned()), None).unwrap();
    Server::new(ServerParts {
        registry,
        authorizer,
        config: ServerConfig {
            cluster_domain: "cluster.local".to_owned(),
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            cluster_dns: "10.43.0.10".parse().unwrap(),
            advertise: "192.0.2.1:6443".parse().unwrap(),
            anonymous: true,
        },
        static_tokens: vec![StaticToken { token: "root".to_owned(), user: UserInfo::new("root", &["system:masters"]) }],
        token_key: pki.token_key,
        client_ca: pki.client_ca,
        server_ca: pki.server_ca,
        node_tls,
        tasks: TaskGroup::new(),
    })
}

/// Sends a request with a token ("" for none) and reads the answer.
pub(crate) async fn call(server: &Arc<Server>, token: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    if !token.is_empty() {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let request = request.body(crate::http::full(body.map(|body| body.to_string()).unwrap_or_default())).unwrap();
    let response = server.handle(request).await;
    assert!(response.headers().contains_key("audit-id"));
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    (status, value)
}

#[test]
fn addresses_of_a_range() {
    let range = |text: &str| text.parse::<IpNet>().unwrap();
    assert_eq!(nth_address(&range("10.43.0.0/16"), 1).to_string(), "10.43.0.1");
    assert_eq!(nth_address(&range("10.43.0.0/16"), 10).to_string(), "10.43.0.10");
    assert_eq!(nth_address(&range("fd00::/112"), 1).to_string(), "fd00::1");
}

#[tokio::test]
async fn masters_reach_everything_and_anonymous_nothing_that_is_not_public() {
    let server = server();
    assert_eq!(call(&server, "wrong", Method::GET, "/version", None).await.0, 401);
    let (status, version) = call(&server, "root", Method::GET, "/version", None).await;
    assert_eq!((status, &version["major"], &version["minor"]), (200, &json!("1"), &json!("36")));
    let (status, refused) = call(&server, "", Method::GET, "/api/v1/namespaces/default/pods", None).await;
    assert_eq!((status, &refused["reason"]), (403, &json!("Forbidden")));
    let message =
        r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "default""#;
    assert_eq!(refused["message"], message);
    assert_eq!(call(&server, "root", Method::GET, "/nothing", None).await.0, 404);
    assert_eq!(call(&server, "root", Method::POST, "/version", None).await.0, 405);
    assert_eq!(call(&server, "root", Method::GET, "/livez", None).await, (200, json!("ok")));
    assert_eq!(call(&server, "root", Method::GET, "/readyz", None).await.0, 500, "before it has its roles");
    assert_eq!(call(&server, "root", Method::GET, "/openid/v1/jwks", None).await.1["keys"][0]["kty"], "EC");
}

#[tokio::test]
async fn a_new_cluster_has_what_it_needs_and_a_second_start_writes_nothing() {
    let server = server();
    bootstrap::run(&server).await.unwrap();
    let revision = server.registry.store().snapshot().revision();
    bootstrap::run(&server).await.unwrap();
    assert_eq!(server.registry.store().snapshot().revision(), revision);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(call(&server, "", Method::GET, path, None).await.0, 200, "{path}");
    }
    for path in ["/", "/api", "/apis", "/metrics", "/openapi/v2", "/readyz/ping", "/openid/v1/jwks"] {
        assert_eq!(call(&server, "", Method::GET, path, None).await.0, 403, "{path}");
    }
    let edit = Attributes::resource("create", "apps", "deployments", "default", "");
    let jane = UserInfo::new("jane", &[AUTHENTICATED]);
    assert!(!server.authorizer.authorize(&jane, &edit).is_allowed());
    assert!(server.authorizer.authorize(&jane, &Attributes::path("get", "/apis/apps/v1")).is_allowed());
    let controller = UserInfo::service_account("kube-system", "deployment-controller");
    assert!(
        server.authorizer.authorize(&controller, &Attributes::resource("create", "apps", "replicasets", "x", "")).is_allowed()
    );
}

#[tokio::test]
async fn a_service_account_has_what_is_bound_to_it_as_long_as_it_lives() {
    let server = server();
    bootstrap::run(&server).await.unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ci"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(call(&server, "root", Method::POST, accounts, Some(account)).await.0, 201);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let (status, granted) = call(&server, "root", Method::POST, &format!("{accounts}/ci/token"), Some(request)).await;
    assert_eq!(status, 201, "{granted}");
    let token = granted["status"]["token"].as_str().unwrap();

    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(call(&server, token, Method::GET, pods, None).await.0, 403);
    let bind = |name: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "ci", "namespace": "default"}],
        })
    };
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let (status, bound) = call(&server, "root", Method::POST, bindings, Some(bind("ci", "admin"))).await;
    assert_eq!(status, 201, "{bound}");
    assert_eq!(call(&server, token, Method::GET, pods, None).await.0, 200);
    assert_eq!(call(&server, token, Method::POST, bindings, Some(bind("own", "edit"))).await.0, 201);
    let (status, refused) = call(&server, token, Method::POST, bindings, Some(bind("more", "cluster-admin"))).await;
    let message = refused["message"].as_str().unwrap();
    assert!(status == 403 && message.contains("is attempting to grant RBAC permissions not currently held"), "{refused}");

    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "default"}},
    });
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(call(&server, token, Method::POST, reviews, Some(review)).await.1["status"]["allowed"], json!(true));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let (_, reviewed) = call(&server, "root", Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews", Some(review)).await;
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:default:ci", "{reviewed}");

    assert_eq!(call(&server, "root", Method::DELETE, &format!("{accounts}/ci"), None).await.0, 200);
    assert_eq!(call(&server, token, Method::GET, pods, None).await.0, 401);
}
