//! Owner references: which objects a controller owns, adopts and releases, as upstream's `ControllerRefManager` decides.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

use super::Error;
use crate::client::{ApiObject, Client, PatchKind};

/// What is to be done with an object that a controller looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// Owned, and the selector matches.
    Keep,
    /// Nobody's, and the selector matches.
    Adopt,
    /// Owned, but the selector does not match any more.
    Release,
    /// Somebody else's, or not to be touched.
    Ignore,
}

/// Decides about one object.
pub(super) fn claim(controller: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
    let deleting = controller.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(owner) if Some(&owner.uid) != controller.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !deleting && object.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The owner that manages the object, if one does.
pub(super) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The reference by which `owner` manages an object.
pub(super) fn controller_reference<K: ApiObject>(owner: &K) -> OwnerReference {
    let meta = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Looks at the API whether an owner may adopt: it is there, is the same object and is not being deleted.
///
/// # Errors
/// [`Error::Client`], [`Error::Incomplete`] if it may not.
pub(super) async fn check_may_adopt<K: ApiObject>(client: &Client, owner: &K) -> Result<(), Error> {
    let meta = owner.metadata();
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    let live: K = client.get(namespace, name).await?;
    let live = live.metadata();
    if live.uid != meta.uid {
        return Err(Error::Incomplete(format!("original {} {namespace}/{name} is gone", K::KIND)));
    }
    if live.deletion_timestamp.is_some() {
        return Err(Error::Incomplete(format!("{namespace}/{name} has just been deleted")));
    }
    Ok(())
}

/// Makes `owner` the controller of an object.
///
/// # Errors
/// [`Error::Client`].
pub(super) async fn adopt<O: ApiObject, K: ApiObject>(client: &Client, owner: &O, object: &K) -> Result<(), Error> {
    let patch = json!({"metadata": {"ownerReferences": [controller_reference(owner)], "uid": object.metadata().uid}});
    patch_meta(client, object, &patch).await
}

/// Takes the reference to `owner` from an object. That the object is gone is no error.
///
/// # Errors
/// [`Error::Client`].
pub(super) async fn release<O: ApiObject, K: ApiObject>(client: &Client, owner: &O, object: &K) -> Result<(), Error> {
    let reference = json!({"$patch": "delete", "uid": owner.metadata().uid});
    let patch = json!({"metadata": {"ownerReferences": [reference], "uid": object.metadata().uid}});
    match patch_meta(client, object, &patch).await {
        // Gone, or an object of the same name with another uid.
        Err(Error::Client(error)) if error.is_not_found() || error.api().is_some_and(|error| error.code == 422) => Ok(()),
        other => other,
    }
}

async fn patch_meta<K: ApiObject>(client: &Client, object: &K, patch: &serde_json::Value) -> Result<(), Error> {
    let meta = object.metadata();
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    client.patch::<K>(namespace, name, None, PatchKind::Strategic, patch).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn claims() {
        let controller = ObjectMeta { uid: Some("me".into()), ..ObjectMeta::default() };
        let going = ObjectMeta { deletion_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)), ..controller.clone() };
        let owned_by = |uid: &str| {
            let owner = OwnerReference { uid: uid.to_owned(), controller: Some(true), ..OwnerReference::default() };
            ObjectMeta { owner_references: Some(vec![owner]), ..ObjectMeta::default() }
        };
        let orphan = ObjectMeta::default();
        for (controller, object, matches, expected) in [
            (&controller, &owned_by("me"), true, Claim::Keep),
            (&controller, &owned_by("me"), false, Claim::Release),
            (&going, &owned_by("me"), false, Claim::Ignore),
            (&controller, &owned_by("you"), true, Claim::Ignore),
            (&controller, &orphan, true, Claim::Adopt),
            (&controller, &orphan, false, Claim::Ignore),
            (&going, &orphan, true, Claim::Ignore),
            (&controller, &going, true, Claim::Ignore),
        ] {
            assert_eq!(claim(controller, object, matches), expected);
        }
    }
}
