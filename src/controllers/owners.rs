//! Owner references: which objects a controller owns, adopts and releases, as upstream's `ControllerRefManager` decides.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};

use super::Error;
use crate::client::informer::{BY_CONTROLLER, Informer, orphans};
use crate::client::{ApiObject, Client, PatchKind};

/// What is to be done with an object that a controller looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
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
fn claim(controller: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
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
async fn check_may_adopt<K: ApiObject>(client: &Client, owner: &K) -> Result<(), Error> {
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

/// The objects that `owner` owns after adopting those that are meant and nobody's, and releasing those that are not meant any more.
/// The informer has the index [`BY_CONTROLLER`]. A `finalizer` comes with the adoption, and goes with the release.
///
/// # Errors
/// [`Error::Client`], [`Error::Incomplete`]; to be tried again.
pub(super) async fn claim_all<O: ApiObject, K: ApiObject>(
    client: &Client,
    owner: &O,
    informer: &Informer<K>,
    is_meant: impl Fn(&K) -> bool + Send,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, Error> {
    let meta = owner.metadata();
    let mut candidates = informer.by_index(BY_CONTROLLER, meta.uid.as_deref().unwrap_or(""));
    candidates.extend(informer.by_index(BY_CONTROLLER, &orphans(meta.namespace.as_deref().unwrap_or(""))));
    let (mut owned, mut may_adopt) = (Vec::new(), false);
    for object in candidates {
        match claim(meta, object.metadata(), is_meant(&object)) {
            Claim::Keep => owned.push(object),
            Claim::Release => {
                let mut patch = json!({"ownerReferences": [{"$patch": "delete", "uid": meta.uid}]});
                if let Some(finalizer) = finalizer {
                    patch["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
                }
                patch_meta(client, &*object, patch).await?;
            }
            Claim::Adopt => {
                if !may_adopt {
                    check_may_adopt(client, owner).await?;
                    may_adopt = true;
                }
                let mut patch = json!({"ownerReferences": [controller_reference(owner)]});
                if let Some(finalizer) = finalizer {
                    patch["finalizers"] = json!([finalizer]);
                }
                owned.extend(patch_meta(client, &*object, patch).await?.map(Arc::new));
            }
            Claim::Ignore => {}
        }
    }
    Ok(owned)
}

/// Patches the metadata of an object; `None` if it is gone, or another has its name.
///
/// # Errors
/// [`Error::Client`].
pub(super) async fn patch_meta<K: ApiObject>(client: &Client, object: &K, mut patch: Value) -> Result<Option<K>, Error> {
    let meta = object.metadata();
    patch["uid"] = json!(meta.uid);
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""));
    match client.patch::<K>(namespace, name, None, PatchKind::Strategic, &json!({"metadata": patch})).await {
        Ok(patched) => Ok(Some(patched)),
        Err(error) if error.is_not_found() || error.api().is_some_and(|error| error.code == 422) => Ok(None),
        Err(error) => Err(error.into()),
    }
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
