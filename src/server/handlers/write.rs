//! Create, update, patch, delete and deletecollection: from a request to the registry's verb and back.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::super::{RequestContext, negotiate};
use super::render::Renderer;
use super::{body, options};
use crate::api::kind::Subresource;
use crate::api::{ApiError, Kind, Object};
use crate::http::{Body, HttpRequest, HttpResponse};
use crate::registry::{Outcome, PatchType, Registry, WriteRequest};

/// Kinds whose delete answers with the object that is gone; the others answer with a Status (upstream's `ReturnDeletedObject`).
const RETURN_DELETED: &[&str] = &[
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourcequotas",
    "serviceaccounts",
    "services",
    "csidrivers",
    "csinodes",
    "storageclasses",
    "volumeattachments",
];

/// One writing request.
pub struct Call<'a> {
    pub registry: &'a Arc<Registry>,
    pub renderer: Renderer,
    pub context: &'a RequestContext,
    pub subresource: Option<Subresource>,
}

impl Call<'_> {
    fn deletion(&self, dry_run: bool) -> Result<WriteRequest, ApiError> {
        let info = &self.context.info;
        let (kind, user) = (Arc::clone(&self.renderer.kind), Arc::clone(&self.context.user));
        let plain = WriteRequest::new(kind, &info.namespace, &info.name, user);
        let field_validation = options::field_validation(self.context)?;
        Ok(WriteRequest { subresource: self.subresource, dry_run, field_validation, ..plain })
    }

    fn request(&self, what: &str, headers: &HeaderMap) -> Result<WriteRequest, ApiError> {
        let info = &self.context.info;
        let dry_run = options::dry_run(self.context, what)?;
        let field_manager = options::field_manager(self.context, what, headers)?;
        Ok(WriteRequest {
            kind: Arc::clone(&self.renderer.kind),
            namespace: info.namespace.clone(),
            name: info.name.clone(),
            user: Arc::clone(&self.context.user),
            subresource: self.subresource,
            dry_run,
            field_validation: options::field_validation(self.context)?,
            field_manager,
            create_refused: self.context.create_refused.clone(),
        })
    }

    /// POST to a collection.
    ///
    /// # Errors
    /// As the registry's create.
    pub async fn create(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let write = self.request("CreateOptions", request.headers())?;
        if write.kind.names().is_namespaced() && write.namespace.is_empty() {
            return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
        }
        let (parts, stream) = request.into_parts();
        let bytes = body::read(stream).await?;
        let decoded = body::object(&*write.kind, &self.context.info, &parts.headers, &bytes, write.field_validation)?;
        let outcome = self.registry.create(&write, decoded.object).await?;
        self.answer(&outcome, decoded.warnings)
    }

    /// PUT of an object or a subresource.
    ///
    /// # Errors
    /// As the registry's update.
    pub async fn update(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let write = self.request("UpdateOptions", request.headers())?;
        let (parts, stream) = request.into_parts();
        let bytes = body::read(stream).await?;
        if self.subresource == Some(Subresource::Scale) {
            let scale = scale_body(self.context, &parts.headers, &bytes)?;
            let (scale, outcome) = self.registry.update_scale(&write, &scale).await?;
            return self.renderer.value(&Value::Object(scale.0), StatusCode::OK, &outcome.warnings);
        }
        let decoded = body::object(&*write.kind, &self.context.info, &parts.headers, &bytes, write.field_validation)?;
        let outcome = self.registry.update(&write, decoded.object).await?;
        self.answer(&outcome, decoded.warnings)
    }

    /// PATCH of an object or a subresource.
    ///
    /// # Errors
    /// As the registry's patch, and 415.
    pub async fn patch(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let write = self.request("PatchOptions", request.headers())?;
        let (parts, stream) = request.into_parts();
        if negotiate::is_apply(&parts.headers) {
            return self.apply(write, stream).await;
        }
        options::no_force(self.context)?;
        let patch_type = patch_type(&parts.headers)?;
        let bytes = body::read(stream).await?;
        if self.subresource == Some(Subresource::Scale) {
            let (scale, outcome) = self.registry.patch_scale(&write, patch_type, &bytes).await?;
            return self.renderer.value(&Value::Object(scale.0), StatusCode::OK, &outcome.warnings);
        }
        let outcome = self.registry.patch(&write, patch_type, &bytes).await?;
        self.answer(&outcome, Vec::new())
    }

    /// PATCH of an object or a subresource with what a manager wants it to be.
    async fn apply(&self, write: WriteRequest, stream: Body) -> Result<HttpResponse, ApiError> {
        let options = options::apply(self.context)?;
        let bytes = body::read(stream).await?;
        let decoded = body::applied(&bytes, write.field_validation)?;
        if self.subresource == Some(Subresource::Scale) {
            let (scale, outcome) = self.registry.apply_scale(&write, &decoded.object, &options).await?;
            let warnings = [decoded.warnings, outcome.warnings].concat();
            return self.renderer.value(&Value::Object(scale.0), StatusCode::OK, &warnings);
        }
        let outcome = self.registry.apply(&write, &decoded.object, &options).await?;
        self.answer(&outcome, decoded.warnings)
    }

    /// DELETE of an object.
    ///
    /// # Errors
    /// As the registry's delete.
    pub async fn delete(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let (parts, stream) = request.into_parts();
        let bytes = body::read(stream).await?;
        let delete = options::delete(self.context, &parts.headers, &bytes)?;
        let write = self.deletion(delete.dry_run)?;
        let outcome = self.registry.delete(&write, &delete.options).await?;
        if outcome.deleted && !RETURN_DELETED.contains(&write.kind.names().plural) {
            let object = self.registry.decode(&*write.kind, &outcome.entry)?;
            return self.renderer.value(&success(&*write.kind, &object), StatusCode::OK, &outcome.warnings);
        }
        let status = if !outcome.deleted && delete.asks_cascade { StatusCode::ACCEPTED } else { StatusCode::OK };
        self.renderer.entry(&outcome.entry, status, &outcome.warnings)
    }

    /// DELETE of a collection.
    ///
    /// # Errors
    /// As the registry's delete_collection.
    pub async fn delete_collection(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let (parts, stream) = request.into_parts();
        let bytes = body::read(stream).await?;
        let delete = options::delete(self.context, &parts.headers, &bytes)?;
        let write = self.deletion(delete.dry_run)?;
        let list = options::list(self.context)?;
        let listing = self.registry.delete_collection(&write, &list, &delete.options).await?;
        self.renderer.list(listing)
    }

    /// POST of a Binding, to a pod or to the collection of bindings.
    ///
    /// # Errors
    /// As the registry's bind.
    pub async fn bind(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let mut write = self.request("CreateOptions", request.headers())?;
        let (parts, stream) = request.into_parts();
        let bytes = body::read(stream).await?;
        let binding = body::decode(negotiate::content_type(&parts.headers)?, &bytes, None)?.object;
        if write.name.is_empty() {
            write.name = binding.name().to_owned();
        }
        if write.name != binding.name() && !binding.name().is_empty() {
            return Err(ApiError::bad_request(format!(
                "name in URL does not match name in Binding object: {:?} != {:?}",
                write.name,
                binding.name()
            )));
        }
        self.registry.bind(&write, &binding).await?;
        self.renderer.value(&created_status(), StatusCode::CREATED, &[])
    }

    /// POST of an Eviction to a pod.
    ///
    /// # Errors
    /// As the registry's evict.
    pub async fn evict(&self, request: HttpRequest) -> Result<HttpResponse, ApiError> {
        let (parts, stream) = request.into_parts();
        let bytes = body::read(stream).await?;
        let eviction = body::decode(negotiate::content_type(&parts.headers)?, &bytes, None)?.object;
        if !eviction.name().is_empty() && eviction.name() != self.context.info.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let wanted = eviction.get(&["deleteOptions"]).and_then(Value::as_object).cloned().unwrap_or_default();
        let delete = options::of_object(&Object(wanted))?;
        let write = self.deletion(delete.dry_run || options::dry_run(self.context, "CreateOptions")?)?;
        self.registry.evict(&write, &delete.options).await?;
        self.renderer.value(&created_status(), StatusCode::CREATED, &[])
    }

    fn answer(&self, outcome: &Outcome, mut warnings: Vec<String>) -> Result<HttpResponse, ApiError> {
        warnings.extend(outcome.warnings.iter().cloned());
        let status = if outcome.created { StatusCode::CREATED } else { StatusCode::OK };
        self.renderer.entry(&outcome.entry, status, &warnings)
    }
}

/// The Status of a create that makes no object of its own.
fn created_status() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// The Status of a delete.
fn success(kind: &dyn Kind, object: &Object) -> Value {
    let names = kind.names();
    let mut details = json!({"name": object.name(), "kind": names.plural, "uid": object.uid()});
    if !names.group.is_empty() {
        details["group"] = json!(names.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn scale_body(context: &RequestContext, headers: &HeaderMap, bytes: &[u8]) -> Result<Object, ApiError> {
    let scale = body::decode(negotiate::content_type(headers)?, bytes, None)?.object;
    if !scale.name().is_empty() && scale.name() != context.info.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            scale.name(),
            context.info.name
        )));
    }
    Ok(scale)
}

fn patch_type(headers: &HeaderMap) -> Result<PatchType, ApiError> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let name = text.split(';').next().unwrap_or("").trim();
    PatchType::ALL.iter().find(|(_, media)| *media == name).map(|(patch_type, _)| *patch_type).ok_or_else(|| {
        let names: Vec<&str> = PatchType::ALL.iter().map(|(_, media)| *media).chain([negotiate::APPLY]).collect();
        ApiError::unsupported_media_type(&names)
    })
}
