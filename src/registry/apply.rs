//! Apply: a patch of type `application/apply-patch+yaml` (`handlers/patch.go`, `applyPatcher`).

use serde_json::Value;

use super::change::Trust;
use super::{Outcome, Registry, WriteRequest, managed};
use crate::api::managed::apply::{Apply, conflict_error, first_owners};
use crate::api::managed::{Managed, Operation, Rule, Set, fields};
use crate::api::status::Reason;
use crate::api::{ApiError, Kind, Object, meta, prune, schema};

/// How an object is applied.
#[derive(Debug, Clone, Default)]
pub struct ApplyOptions {
    /// Take fields from other managers.
    pub force: bool,
}

/// How often an apply goes back and forth between create and update when others do the opposite.
const ATTEMPTS: usize = 8;

impl Registry {
    /// Makes the object have the fields that `config` has, as the request's field manager; creates it where it is not there.
    ///
    /// # Errors
    /// 409 when a field is another manager's, 400 for a `config` of another kind, and as [`update`](Self::update).
    pub async fn apply(&self, request: &WriteRequest, config: &Object, options: &ApplyOptions) -> Result<Outcome, ApiError> {
        let kind = &*request.kind;
        let names = kind.names();
        check_config(config, (names.group, names.version, names.kind), Rule::of_object(kind.schema()))?;
        let mut outcome = Err(ApiError::modified(&names.group_resource(), &request.name));
        for _ in 0..ATTEMPTS {
            outcome = self.change(request, Trust::Applied, |old, _| self.applied(request, config, old, options.force)).await;
            let is_absent = |error: &ApiError| error.is_not_found() && error.details.kind == names.plural;
            if !outcome.as_ref().is_err_and(is_absent) || request.subresource.is_some() {
                return outcome;
            }
            if let Some(refused) = &request.create_refused {
                return Err(refused.clone());
            }
            outcome = self.create_applied(request, config).await;
            if !outcome.as_ref().is_err_and(ApiError::is_already_exists) {
                return outcome;
            }
        }
        outcome
    }

    async fn create_applied(&self, request: &WriteRequest, config: &Object) -> Result<Outcome, ApiError> {
        let resource = request.kind.names().group_resource();
        if !config.uid().is_empty() {
            let why =
                format!("uid mismatch: the provided object specified uid {}, and no existing object was found", config.uid());
            return Err(ApiError::conflict(&resource, &request.name, why));
        }
        if !config.resource_version().is_empty() {
            return Err(ApiError::modified(&resource, &request.name));
        }
        let object = self.merged(request, config, &Object::default(), Managed::default(), true)?;
        check_name(request, &object)?;
        self.create_named(request, object, Trust::Applied).await
    }

    /// The stored object with the applied one merged in.
    fn applied(&self, request: &WriteRequest, config: &Object, old: &Object, force: bool) -> Result<Object, ApiError> {
        let mut live = old.clone();
        let stored = live.remove(&managed::PATH);
        let managed = self.owners_before_apply(request, &live, stored.as_ref())?;
        let object = self.merged(request, config, &live, managed, force)?;
        check_name(request, &object)?;
        Ok(object)
    }

    /// The owners that are stored or, at the first apply, those that the object has from before it.
    pub(super) fn owners_before_apply(
        &self,
        request: &WriteRequest,
        live: &Object,
        stored: Option<&Value>,
    ) -> Result<Managed, ApiError> {
        let managed = stored.map_or_else(|| Ok(Managed::default()), Managed::from_value);
        let managed = managed.map_err(|why| plain(format!("failed to decode managed fields: {why}")))?;
        if !managed.is_empty() {
            return Ok(managed);
        }
        let (kind, now) = (&*request.kind, meta::time_text(self.clock.now()));
        let writer = managed::manager(request, Operation::Update, request.subresource);
        let reset = managed::reset_fields(kind, request.subresource);
        Ok(first_owners(live, Rule::of_object(kind.schema()), &writer, &reset, &now, |config| kind.default(config)))
    }

    fn merged(
        &self,
        request: &WriteRequest,
        config: &Object,
        live: &Object,
        managed: Managed,
        force: bool,
    ) -> Result<Object, ApiError> {
        let kind = &*request.kind;
        let reset = managed::reset_fields(kind, request.subresource);
        let rule = Rule::of_object(kind.schema());
        let (mut object, managed) = self.run_apply(request, config, live, (rule, &reset), managed, force)?;
        clean(kind, config, &mut object)?;
        if !managed.is_empty() {
            object.set(&managed::PATH, managed.to_value());
        }
        Ok(object)
    }

    /// Applies to any object with a rule: also to a Scale.
    pub(super) fn run_apply(
        &self,
        request: &WriteRequest,
        config: &Object,
        live: &Object,
        (rule, reset): (Rule, &Set),
        managed: Managed,
        force: bool,
    ) -> Result<(Object, Managed), ApiError> {
        let manager = managed::manager(request, Operation::Apply, request.subresource);
        let now = meta::time_text(self.clock.now());
        let apply = Apply { live, config, rule, manager: &manager, force, reset, now: &now };
        let applied = apply.run(managed).map_err(|conflicts| conflict_error(&conflicts))?;
        Ok((applied.object.unwrap_or_else(|| live.clone()), applied.managed))
    }
}

/// Refuses a body that is not of the kind that the URL names, or that the type does not allow.
pub(super) fn check_config(config: &Object, (group, version, kind): (&str, &str, &str), rule: Rule) -> Result<(), ApiError> {
    let (api_group, api_version) = config.api_version().split_once('/').unwrap_or(("", config.api_version()));
    let shown = format!("{api_group}/{api_version}, Kind={}", config.kind());
    if (api_group, api_version, config.kind()) != (group, version, kind) {
        return Err(ApiError::bad_request(format!("invalid object type: {shown}")));
    }
    if config.get(&managed::PATH).is_some_and(|value| !value.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    fields::check(&config.0, rule).map_err(|why| {
        let name = format!("{}/{}", config.namespace(), config.name());
        plain(format!("failed to create typed patch object ({name}; {shown}): {why}"))
    })
}

/// Drops nulls and refuses values of the wrong type, as decoding into a struct does.
fn clean(kind: &dyn Kind, config: &Object, object: &mut Object) -> Result<(), ApiError> {
    let Some(of) = kind.schema().and_then(schema::get) else { return Ok(()) };
    let mut value = Value::Object(std::mem::take(&mut object.0));
    if let Some(why) = prune::wrong_type(&value, of) {
        let names = kind.names();
        let name = format!("{}/{}", config.namespace(), config.name());
        let shown = format!("{}/{}, Kind={}", names.group, names.version, names.kind);
        return Err(plain(format!("failed to convert new typed object ({name}; {shown}) to object: {why}")));
    }
    prune::check(&mut value, of);
    if let Value::Object(map) = value {
        object.0 = map;
    }
    Ok(())
}

fn check_name(request: &WriteRequest, object: &Object) -> Result<(), ApiError> {
    let (name, namespace) = (object.name(), object.namespace());
    if name.is_empty() {
        let wanted = &request.name;
        let why = format!("the name of the object ({wanted} based on URL) was undeterminable: name must be provided");
        return Err(ApiError::bad_request(why));
    }
    if name != request.name {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({})", request.name);
        return Err(ApiError::bad_request(why));
    }
    if !request.namespace.is_empty() && !namespace.is_empty() && namespace != request.namespace {
        let wanted = &request.namespace;
        let why = format!("the namespace of the object ({namespace}) does not match the namespace on the request ({wanted})");
        return Err(ApiError::bad_request(why));
    }
    Ok(())
}

/// 500 without a reason: what upstream makes of an error that is no Status.
fn plain(message: String) -> ApiError {
    ApiError::new(500, Reason::Unknown, message)
}
