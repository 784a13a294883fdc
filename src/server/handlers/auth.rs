//! Resources that are answers: token and access reviews, and tokens of service accounts. They are created, never stored.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{
    SelfSubjectReview, SelfSubjectReviewStatus, TokenRequest, TokenRequestStatus, TokenReview, TokenReviewStatus,
    UserInfo as ReviewedUser,
};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, NonResourceAttributes, NonResourceRule, ResourceAttributes, ResourceRule, SelfSubjectAccessReview,
    SelfSubjectRulesReview, SubjectAccessReview, SubjectAccessReviewStatus, SubjectRulesReviewStatus,
};
use k8s_openapi::api::core::v1::{Node, Pod, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::field::FieldError;
use crate::api::status::GroupResource;
use crate::api::{ApiError, Kind, Object};
use crate::auth::tokens::{Binding, EXTENDED, Reference, WARN_AFTER};
use crate::auth::{Attributes, Decision, UserInfo};
use crate::kinds::core;
use crate::server::{RequestContext, Server};

/// Shortest and longest life of a token that may be asked for, in seconds.
const TOKEN_SECONDS: std::ops::RangeInclusive<i64> = 600..=(1 << 32);
/// Life of a token whose request does not say.
const DEFAULT_TOKEN_SECONDS: i64 = 3_600;

/// Answers a create of a kind that is never stored, or of `serviceaccounts/token`; `None` for all others.
pub async fn create_virtual(
    server: &Arc<Server>,
    context: &RequestContext,
    kind: &dyn Kind,
    object: Object,
) -> Option<Result<Object, ApiError>> {
    let names = kind.names();
    let answer = match (names.group, names.kind) {
        ("", "ServiceAccount") if context.info.subresource == "token" => token_request(server, context, &object),
        ("authentication.k8s.io", "TokenReview") => token_review(server, &object),
        ("authentication.k8s.io", "SelfSubjectReview") => self_subject_review(server, context, &object),
        ("authorization.k8s.io", "SubjectAccessReview") => subject_access_review(server, &object),
        ("authorization.k8s.io", "LocalSubjectAccessReview") => local_subject_access_review(server, context, &object),
        ("authorization.k8s.io", "SelfSubjectAccessReview") => self_subject_access_review(server, context, &object),
        ("authorization.k8s.io", "SelfSubjectRulesReview") => self_subject_rules_review(server, context, &object),
        _ => return None,
    };
    Some(answer)
}

fn token_review(server: &Server, object: &Object) -> Result<Object, ApiError> {
    let mut review: TokenReview = object.typed()?;
    let token = review.spec.token.as_str();
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences = review.spec.audiences.clone().unwrap_or_default();
    let status = match server.authenticator.token_for(token, &audiences) {
        Ok((user, audiences)) => TokenReviewStatus {
            authenticated: Some(true),
            user: Some(reviewed(&user.authenticated())),
            audiences: Some(audiences),
            ..TokenReviewStatus::default()
        },
        Err(error) => TokenReviewStatus {
            authenticated: None,
            error: Some(error.to_string()),
            user: Some(ReviewedUser::default()),
            ..TokenReviewStatus::default()
        },
    };
    review.status = Some(status);
    Object::from_typed(&review)
}

fn reviewed(user: &UserInfo) -> ReviewedUser {
    ReviewedUser {
        username: Some(user.name.clone()),
        uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
        groups: Some(user.groups.clone()),
        extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
    }
}

fn self_subject_review(server: &Server, context: &RequestContext, object: &Object) -> Result<Object, ApiError> {
    let mut review: SelfSubjectReview = object.typed()?;
    review.metadata.creation_timestamp = Some(Time(server.clock.now()));
    review.status = Some(SelfSubjectReviewStatus { user_info: Some(reviewed(&context.user)) });
    Object::from_typed(&review)
}

fn invalid(object: &Object, error: FieldError) -> ApiError {
    ApiError::invalid("authorization.k8s.io", object.kind(), "", &[error])
}

/// What a review asks about.
fn wanted(
    object: &Object,
    resource: Option<&ResourceAttributes>,
    path: Option<&NonResourceAttributes>,
) -> Result<Attributes, ApiError> {
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    match (resource, path) {
        (Some(_), Some(_)) => {
            let why = "cannot be specified in combination with resourceAttributes";
            Err(invalid(object, FieldError::invalid("spec.nonResourceAttributes".into(), "", why)))
        }
        (None, None) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
            Err(invalid(object, FieldError::invalid("spec.resourceAttributes".into(), "", why)))
        }
        (Some(resource), None) => Ok(Attributes {
            verb: text(resource.verb.as_ref()),
            namespace: text(resource.namespace.as_ref()),
            group: text(resource.group.as_ref()),
            version: text(resource.version.as_ref()),
            resource: text(resource.resource.as_ref()),
            subresource: text(resource.subresource.as_ref()),
            name: text(resource.name.as_ref()),
            is_resource: true,
            ..Attributes::default()
        }),
        (None, Some(path)) => Ok(Attributes::path(&text(path.verb.as_ref()).to_lowercase(), &text(path.path.as_ref()))),
    }
}

fn decided(server: &Server, user: &UserInfo, wanted: &Attributes) -> SubjectAccessReviewStatus {
    let (allowed, reason) = match server.authorizer.authorize(user, wanted) {
        Decision::Allow { reason } => (true, reason),
        Decision::NoOpinion { reason } => (false, reason),
    };
    let reason = Some(reason).filter(|reason| !reason.is_empty());
    SubjectAccessReviewStatus { allowed, reason, ..SubjectAccessReviewStatus::default() }
}

fn subject_access_review(server: &Server, object: &Object) -> Result<Object, ApiError> {
    let mut review: SubjectAccessReview = object.typed()?;
    review.status = Some(reviewed_access(server, object, &review.spec)?);
    Object::from_typed(&review)
}

fn local_subject_access_review(server: &Server, context: &RequestContext, object: &Object) -> Result<Object, ApiError> {
    let mut review: LocalSubjectAccessReview = object.typed()?;
    let namespace = review.spec.resource_attributes.as_ref().and_then(|resource| resource.namespace.as_deref());
    if namespace != Some(context.info.namespace.as_str()) {
        let why = format!("must match metadata.namespace: {}", context.info.namespace);
        let path = "spec.resourceAttributes.namespace".into();
        return Err(invalid(object, FieldError::invalid(path, namespace.unwrap_or(""), why)));
    }
    review.status = Some(reviewed_access(server, object, &review.spec)?);
    Object::from_typed(&review)
}

fn reviewed_access(
    server: &Server,
    object: &Object,
    spec: &k8s_openapi::api::authorization::v1::SubjectAccessReviewSpec,
) -> Result<SubjectAccessReviewStatus, ApiError> {
    let wanted = wanted(object, spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref())?;
    let user = UserInfo {
        name: spec.user.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(object, FieldError::invalid("spec.user".into(), "", why)));
    }
    Ok(decided(server, &user, &wanted))
}

fn self_subject_access_review(server: &Server, context: &RequestContext, object: &Object) -> Result<Object, ApiError> {
    let mut review: SelfSubjectAccessReview = object.typed()?;
    let spec = &review.spec;
    let wanted = wanted(object, spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref())?;
    review.status = Some(decided(server, &context.user, &wanted));
    Object::from_typed(&review)
}

fn self_subject_rules_review(server: &Server, context: &RequestContext, object: &Object) -> Result<Object, ApiError> {
    let mut review: SelfSubjectRulesReview = object.typed()?;
    let namespace = review.spec.namespace.clone().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (rules, errors) = server.authorizer.rules_for(&context.user, &namespace);
    let mut status = SubjectRulesReviewStatus {
        evaluation_error: Some(errors.join(", ")).filter(|errors| !errors.is_empty()),
        incomplete: !errors.is_empty(),
        ..SubjectRulesReviewStatus::default()
    };
    for rule in rules {
        if rule.non_resource_urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
            let rule = NonResourceRule { verbs: rule.verbs, non_resource_urls: rule.non_resource_urls };
            status.non_resource_rules.push(rule);
        } else {
            let (api_groups, resources) = (rule.api_groups, rule.resources);
            status.resource_rules.push(ResourceRule {
                verbs: rule.verbs,
                api_groups,
                resources,
                resource_names: rule.resource_names.filter(|names| !names.is_empty()),
            });
        }
    }
    review.status = Some(status);
    Object::from_typed(&review)
}

/// `serviceaccounts/NAME/token`, as upstream's `pkg/registry/core/serviceaccount/storage/token.go`.
fn token_request(server: &Server, context: &RequestContext, object: &Object) -> Result<Object, ApiError> {
    let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
    let mut request: TokenRequest = object.typed()?;
    let account: ServiceAccount = read(server, &core::service_account::SERVICE_ACCOUNT, namespace, name)?;
    let mut spec = request.spec.unwrap_or_default();
    let seconds = spec.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
    check_seconds(name, seconds)?;
    let mut binding = Binding {
        namespace: namespace.to_owned(),
        serviceaccount: Reference { name: name.to_owned(), uid: account.metadata.uid.unwrap_or_default() },
        ..Binding::default()
    };
    if let Some(to) = &spec.bound_object_ref {
        let to_name = to.name.as_deref().unwrap_or("");
        let bound = bind(server, context, &mut binding, to.kind.as_deref().unwrap_or(""), to_name)?;
        if to.uid.as_ref().is_some_and(|uid| !uid.is_empty() && *uid != bound) {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                to.uid.as_deref().unwrap_or("")
            );
            let plural = format!("{}s", to.kind.as_deref().unwrap_or("").to_lowercase());
            return Err(ApiError::conflict(&GroupResource { group: "", resource: &plural }, to_name, why));
        }
    }
    let audiences = spec.audiences.clone().unwrap_or_default();
    let mut life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let for_api = audiences.is_empty() || audiences.iter().all(|audience| server.tokens.api_audiences().contains(audience));
    if life == WARN_AFTER && binding.pod.is_some() && for_api {
        binding.warnafter = Some(seconds);
        life = EXTENDED;
    }
    let (token, expires) = server.tokens.issue(binding, &audiences, life).map_err(ApiError::internal)?;
    if audiences.is_empty() {
        spec.audiences = Some(vec![server.tokens.issuer().to_owned()]);
    }
    // The client is told the life that it asked for, so that it renews in time.
    let told = if life == EXTENDED { server.clock.now().saturating_add(WARN_AFTER).unwrap_or(expires) } else { expires };
    spec.expiration_seconds = Some(seconds);
    request.spec = Some(spec);
    request.metadata.name = Some(name.to_owned());
    request.metadata.namespace = Some(namespace.to_owned());
    request.metadata.creation_timestamp = Some(Time(server.clock.now()));
    request.status = Some(TokenRequestStatus { token: Some(token), expiration_timestamp: Some(Time(told)) });
    Object::from_typed(&request)
}

fn check_seconds(name: &str, seconds: i64) -> Result<(), ApiError> {
    let why = if seconds < *TOKEN_SECONDS.start() {
        "may not specify a duration less than 10 minutes"
    } else if seconds > *TOKEN_SECONDS.end() {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let error = FieldError::invalid("spec.expirationSeconds".into(), seconds, why);
    Err(ApiError::invalid("authentication.k8s.io", "TokenRequest", name, &[error]))
}

fn read<K: serde::de::DeserializeOwned>(server: &Server, kind: &dyn Kind, namespace: &str, name: &str) -> Result<K, ApiError> {
    server.registry.get_object(kind, namespace, name)?.typed()
}

/// Ties a token to an object, and returns that object's uid.
fn bind(server: &Server, context: &RequestContext, binding: &mut Binding, kind: &str, name: &str) -> Result<String, ApiError> {
    let namespace = context.info.namespace.clone();
    let reference = |uid: Option<String>| Reference { name: name.to_owned(), uid: uid.unwrap_or_default() };
    match kind {
        "Pod" => {
            let pod: Pod = read(server, &core::pod::POD, &namespace, name)?;
            let spec = pod.spec.unwrap_or_default();
            let account = spec.service_account_name.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
            if account != binding.serviceaccount.name {
                let why = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    binding.serviceaccount.name
                );
                return Err(ApiError::bad_request(why));
            }
            let node = spec.node_name.filter(|node| !node.is_empty());
            if context.user.node_name().is_some_and(|own| node.as_deref() != Some(own)) {
                let why = format!("pod {name:?} is not running on the node that asks");
                return Err(ApiError::forbidden(&GroupResource { group: "", resource: "pods" }, name, why));
            }
            if let Some(node) = node {
                let uid = read::<Node>(server, &core::node::NODE, "", &node).ok().and_then(|node| node.metadata.uid);
                binding.node = Some(Reference { name: node, uid: uid.unwrap_or_default() });
            }
            binding.pod = Some(reference(pod.metadata.uid));
        }
        "Secret" => {
            let secret: Secret = read(server, &core::secret::SECRET, &namespace, name)?;
            binding.secret = Some(reference(secret.metadata.uid));
        }
        "Node" => {
            let node: Node = read(server, &core::node::NODE, "", name)?;
            binding.node = Some(reference(node.metadata.uid));
        }
        other => return Err(ApiError::bad_request(format!("cannot bind token to object of type {other}"))),
    }
    let bound = binding.pod.as_ref().or(binding.secret.as_ref()).or(binding.node.as_ref());
    Ok(bound.map(|bound| bound.uid.clone()).unwrap_or_default())
}
