//! Query parameters and `DeleteOptions`, as options of the registry's verbs.

use serde_json::Value;

use super::super::RequestContext;
use super::super::negotiate;
use super::body;
use crate::api::field::{FieldError, Path};
use crate::api::prune::FieldValidation;
use crate::api::selector::{field, label};
use crate::api::{ApiError, Object, schema};
use crate::registry::{ApplyOptions, DeleteOptions, ListOptions, Preconditions, Propagation, WatchOptions};

/// Selectors, paging and revisions.
///
/// # Errors
/// 400 when a parameter does not parse.
pub fn list(context: &RequestContext) -> Result<ListOptions, ApiError> {
    let text = |name: &str| context.query(name).unwrap_or("").to_owned();
    let mut options = ListOptions {
        labels: label::Selector::parse(context.query("labelSelector").unwrap_or("")).map_err(ApiError::bad_request)?,
        fields: field::Selector::parse(context.query("fieldSelector").unwrap_or("")).map_err(ApiError::bad_request)?,
        limit: number(context, "limit")?.unwrap_or(0).try_into().unwrap_or(0),
        continue_token: text("continue"),
        resource_version: text("resourceVersion"),
        resource_version_match: text("resourceVersionMatch"),
    };
    // A watch or list of one object by path.
    if !context.info.name.is_empty() {
        options.fields.requirements.push(field::Requirement {
            field: "metadata.name".to_owned(),
            equals: true,
            value: context.info.name.clone(),
        });
    }
    Ok(options)
}

/// The options of a watch.
///
/// # Errors
/// As [`list`].
pub fn watch(context: &RequestContext) -> Result<WatchOptions, ApiError> {
    let send_initial_events = context.query("sendInitialEvents").map(|_| context.flag("sendInitialEvents"));
    Ok(WatchOptions { list: list(context)?, send_initial_events, allow_bookmarks: context.flag("allowWatchBookmarks") })
}

/// A whole number, if the parameter is there.
///
/// # Errors
/// 400 in the words of Go's `strconv`.
pub fn number(context: &RequestContext, name: &str) -> Result<Option<i64>, ApiError> {
    match context.query(name) {
        None | Some("") => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    }
}

/// `dryRun=All`.
///
/// # Errors
/// 422 for anything else; `what` is the name of the options (`CreateOptions`).
pub fn dry_run(context: &RequestContext, what: &str) -> Result<bool, ApiError> {
    let values: Vec<&str> = context.query.iter().filter(|(key, _)| key == "dryRun").map(|(_, value)| value.as_str()).collect();
    is_dry_run(&values, what)
}

fn is_dry_run(values: &[&str], what: &str) -> Result<bool, ApiError> {
    match values.iter().find(|value| **value != "All") {
        None => Ok(!values.is_empty()),
        Some(other) => {
            let error = FieldError::not_supported(Path::new("dryRun"), *other, &["All"]);
            Err(ApiError::invalid("meta.k8s.io", what, "", &[error]))
        }
    }
}

/// Longest name of a field manager.
const FIELD_MANAGER_BYTES_MAX: usize = 128;

/// Who writes: `fieldManager` or, where it is not said, the program's name in `User-Agent`.
///
/// # Errors
/// 422 for a name that is too long or can't be printed; `what` is the name of the options.
pub fn field_manager(context: &RequestContext, what: &str, headers: &::http::HeaderMap) -> Result<String, ApiError> {
    let said = context.query("fieldManager").unwrap_or("");
    let path = || Path::new("fieldManager");
    let error = if said.len() > FIELD_MANAGER_BYTES_MAX {
        Some(FieldError::too_long(path(), FIELD_MANAGER_BYTES_MAX))
    } else if said.chars().any(char::is_control) {
        Some(FieldError::invalid(path(), said, "should only contain printable characters"))
    } else {
        None
    };
    if let Some(error) = error {
        return Err(ApiError::invalid("meta.k8s.io", what, "", &[error]));
    }
    if !said.is_empty() {
        return Ok(said.to_owned());
    }
    let agent = headers.get(::http::header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
    let program = agent.split('/').next().unwrap_or("");
    Ok(program.chars().filter(|letter| !letter.is_control()).take(FIELD_MANAGER_BYTES_MAX).collect())
}

/// The options of a server-side apply: its manager must say its name.
///
/// # Errors
/// 422 when it does not.
pub fn apply(context: &RequestContext) -> Result<ApplyOptions, ApiError> {
    if context.query("fieldManager").unwrap_or("").is_empty() {
        let error = FieldError::required(Path::new("fieldManager"), "is required for apply patch");
        return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    }
    Ok(ApplyOptions { force: context.flag("force") })
}

/// Checks that a patch that is no apply does not ask for force.
///
/// # Errors
/// 422 when it does.
pub fn no_force(context: &RequestContext) -> Result<(), ApiError> {
    if context.query("force").is_none() {
        return Ok(());
    }
    let error = FieldError::forbidden(Path::new("force"), "may not be specified for non-apply patch");
    Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
}

/// `fieldValidation`.
///
/// # Errors
/// 400 for an unknown word.
pub fn field_validation(context: &RequestContext) -> Result<FieldValidation, ApiError> {
    FieldValidation::parse(context.query("fieldValidation").unwrap_or(""))
}

/// What a delete asks for, and whether it is a dry run.
pub struct Delete {
    pub options: DeleteOptions,
    pub dry_run: bool,
    /// `orphanDependents=false` was said: 202 for a deletion that goes on.
    pub asks_cascade: bool,
}

/// `DeleteOptions` of the body or, where there is none, of the query.
///
/// # Errors
/// 400 when it is malformed, 422 when it contradicts itself, 415.
pub fn delete(context: &RequestContext, headers: &::http::HeaderMap, bytes: &[u8]) -> Result<Delete, ApiError> {
    let object = if bytes.is_empty() {
        from_query(context)?
    } else {
        let of = schema::get("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
        let object = body::decode(negotiate::content_type(headers)?, bytes, of)?.object;
        if !matches!(object.kind(), "" | "DeleteOptions") {
            return Err(ApiError::bad_request(format!("decoded object cannot be converted to DeleteOptions: {}", object.kind())));
        }
        object
    };
    let mut delete = of_object(&object)?;
    delete.dry_run |= dry_run(context, "DeleteOptions")?;
    Ok(delete)
}

fn from_query(context: &RequestContext) -> Result<Object, ApiError> {
    let mut object = Object::default();
    if let Some(seconds) = number(context, "gracePeriodSeconds")? {
        object.set(&["gracePeriodSeconds"], seconds);
    }
    if let Some(policy) = context.query("propagationPolicy") {
        object.set(&["propagationPolicy"], policy);
    }
    if context.query("orphanDependents").is_some() {
        object.set(&["orphanDependents"], context.flag("orphanDependents"));
    }
    Ok(object)
}

/// The options in a `DeleteOptions` object (also that of an Eviction).
///
/// # Errors
/// 422 when it contradicts itself.
pub fn of_object(object: &Object) -> Result<Delete, ApiError> {
    let mut errors = Vec::new();
    let path = || Path::new("propagationPolicy");
    let orphan = object.get(&["orphanDependents"]).and_then(Value::as_bool);
    let policy = object.str_at(&["propagationPolicy"]);
    if let (Some(_), Some(policy)) = (orphan, policy) {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        errors.push(FieldError::invalid(path(), policy, why));
    }
    let propagation = match (orphan, policy) {
        (Some(true), _) | (None, Some("Orphan")) => Some(Propagation::Orphan),
        (Some(false), _) | (None, Some("Background")) => Some(Propagation::Background),
        (None, Some("Foreground")) => Some(Propagation::Foreground),
        (None, None) => None,
        (None, Some(other)) => {
            errors.push(FieldError::not_supported(path(), other, &["Background", "Foreground", "Orphan", "nil"]));
            None
        }
    };
    if !errors.is_empty() {
        return Err(ApiError::invalid("meta.k8s.io", "DeleteOptions", "", &errors));
    }
    let list = object.get(&["dryRun"]).and_then(Value::as_array).into_iter().flatten();
    let dry_run: Vec<&str> = list.filter_map(Value::as_str).collect();
    let text = |path: &[&str]| object.str_at(path).map(ToOwned::to_owned);
    Ok(Delete {
        options: DeleteOptions {
            grace_period_seconds: object.get(&["gracePeriodSeconds"]).and_then(Value::as_i64),
            propagation,
            preconditions: Preconditions {
                uid: text(&["preconditions", "uid"]),
                resource_version: text(&["preconditions", "resourceVersion"]),
            },
        },
        dry_run: is_dry_run(&dry_run, "DeleteOptions")?,
        asks_cascade: orphan == Some(false),
    })
}
