//! The paths and operations of the served kinds, derived from their names, verbs and subresources.

use crate::api::Kind;
use crate::api::kind::{Names, Subresource, Verb};

/// A path with its operations.
pub struct PathItem {
    pub path: String,
    /// Parameters in the path: `name`, `namespace`.
    pub parameters: Vec<&'static str>,
    pub operations: Vec<Operation>,
}

/// One operation.
pub struct Operation {
    pub method: &'static str,
    /// `x-kubernetes-action`
    pub action: &'static str,
    pub id: String,
    pub description: String,
    pub tag: String,
    /// Group, version, kind.
    pub kind: (String, String, String),
    pub parameters: &'static [Parameter],
    pub body: Body,
    /// The schema of the answer; "" for text.
    pub response: String,
}

/// What a request carries.
pub enum Body {
    None,
    /// An object of this type.
    Object(String),
    Patch,
    /// `DeleteOptions`, which may be left out.
    DeleteOptions,
}

/// A query parameter.
#[derive(Debug)]
pub struct Parameter {
    pub name: &'static str,
    /// JSON type.
    pub kind: &'static str,
    pub description: &'static str,
}

const fn parameter(name: &'static str, kind: &'static str, description: &'static str) -> Parameter {
    Parameter { name, kind, description }
}

const DRY_RUN: Parameter = parameter(
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. An invalid or unrecognized dryRun directive will result in an error response and no further processing of the request. Valid values are: - All: all dry run stages will be processed",
);
const FIELD_MANAGER: Parameter = parameter(
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes. The value must be less than or 128 characters long, and only contain printable characters, as defined by https://golang.org/pkg/unicode/#IsPrint.",
);
const FIELD_VALIDATION: Parameter = parameter(
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: - Ignore: drop unknown and duplicate fields silently. - Warn: send a warning for each of them (the default). - Strict: fail the request.",
);
const FORCE: Parameter = parameter(
    "force",
    "boolean",
    "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people. Force flag must be unset for non-apply patch requests.",
);
const SELECTORS: [Parameter; 9] = [
    parameter("allowWatchBookmarks", "boolean", "allowWatchBookmarks requests watch events with type \"BOOKMARK\"."),
    parameter("continue", "string", "The continue option should be set when retrieving more results from the server."),
    parameter(
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    ),
    parameter(
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    ),
    parameter("limit", "integer", "limit is a maximum number of responses to return for a list call."),
    parameter(
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    ),
    parameter("resourceVersionMatch", "string", "resourceVersionMatch determines how resourceVersion is applied to list calls."),
    parameter("sendInitialEvents", "boolean", "sendInitialEvents=true asks a watch to begin with the objects that there are."),
    parameter(
        "timeoutSeconds",
        "integer",
        "Timeout for the list/watch call. This limits the duration of the call, regardless of any activity or inactivity.",
    ),
];
const WATCH: Parameter = parameter(
    "watch",
    "boolean",
    "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications. Specify resourceVersion.",
);
const GRACE: Parameter = parameter(
    "gracePeriodSeconds",
    "integer",
    "The duration in seconds before the object should be deleted. The value zero indicates delete immediately.",
);
const PROPAGATION: Parameter = parameter(
    "propagationPolicy",
    "string",
    "Whether and how garbage collection will be performed: 'Orphan', 'Background' or 'Foreground'.",
);
const ORPHAN: Parameter = parameter("orphanDependents", "boolean", "Deprecated: please use the PropagationPolicy.");

const LIST: &[Parameter] = {
    let [a, b, c, d, e, f, g, h, i] = SELECTORS;
    &[a, b, c, d, e, f, g, h, i, WATCH]
};
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[DRY_RUN, GRACE, ORPHAN, PROPAGATION];
const DELETE_COLLECTION: &[Parameter] = {
    let [_, b, c, d, e, f, g, h, i] = SELECTORS;
    &[b, DRY_RUN, c, GRACE, d, e, ORPHAN, PROPAGATION, f, g, h, i]
};

const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// The paths of one kind. `schema` is the name of its type.
pub fn of_kind(kind: &dyn Kind, schema: &str) -> Vec<PathItem> {
    let names = kind.names();
    let maker = Maker { names, schema, verbs: kind.verbs() };
    let root = if names.group.is_empty() {
        format!("/api/{}", names.version)
    } else {
        format!("/apis/{}/{}", names.group, names.version)
    };
    let mut items = Vec::new();
    let (collection, scope): (String, &[&'static str]) = if names.is_namespaced() {
        if maker.has(Verb::List) {
            let all = maker.list(&format!("list{}{}ForAllNamespaces", maker.group_prefix(), names.kind));
            items.push(PathItem { path: format!("{root}/{}", names.plural), parameters: Vec::new(), operations: vec![all] });
        }
        (format!("{root}/namespaces/{{namespace}}/{}", names.plural), &["namespace"])
    } else {
        (format!("{root}/{}", names.plural), &[])
    };
    let object_scope: Vec<&'static str> = ["name"].iter().chain(scope).copied().collect();
    let object = format!("{collection}/{{name}}");
    items.push(PathItem { path: collection, parameters: scope.to_vec(), operations: maker.collection_operations() });
    for subresource in kind.subresources() {
        let operations = maker.subresource_operations(*subresource);
        items.push(PathItem { path: format!("{object}/{}", subresource.as_str()), parameters: object_scope.clone(), operations });
    }
    items.push(PathItem { path: object, parameters: object_scope, operations: maker.object_operations() });
    items.retain(|item| !item.operations.is_empty());
    items
}

struct Maker<'a> {
    names: &'a Names,
    schema: &'a str,
    verbs: &'a [Verb],
}

impl Maker<'_> {
    fn has(&self, verb: Verb) -> bool {
        self.verbs.contains(&verb)
    }

    /// `AppsV1`, `RbacAuthorizationV1`, `CoreV1`.
    fn group_prefix(&self) -> String {
        let group = if self.names.group.is_empty() { "core" } else { self.names.group.trim_end_matches(".k8s.io") };
        group.split('.').chain([self.names.version]).map(capitalized).collect()
    }

    fn scoped_kind(&self) -> String {
        let scope = if self.names.is_namespaced() { "Namespaced" } else { "" };
        format!("{scope}{}", self.names.kind)
    }

    fn operation(&self, method: &'static str, action: &'static str, verb: &str, what: &str, suffix: &str) -> Operation {
        let names = self.names;
        let group = names.group.split('.').next().filter(|group| !group.is_empty()).unwrap_or("core");
        Operation {
            method,
            action,
            id: format!("{verb}{}{}{suffix}", self.group_prefix(), self.scoped_kind()),
            description: format!("{what} {}", names.kind),
            tag: format!("{group}_{}", names.version),
            kind: (names.group.to_owned(), names.version.to_owned(), names.kind.to_owned()),
            parameters: &[],
            body: Body::None,
            response: self.schema.to_owned(),
        }
    }

    fn list(&self, id: &str) -> Operation {
        let operation = self.operation("get", "list", "list", "list or watch objects of kind", "");
        Operation { id: id.to_owned(), parameters: LIST, response: format!("{}List", self.schema), ..operation }
    }

    fn collection_operations(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        if self.has(Verb::List) {
            operations.push(self.list(&format!("list{}{}", self.group_prefix(), self.scoped_kind())));
        }
        if self.has(Verb::Create) {
            let operation = self.operation("post", "post", "create", "create a", "");
            operations.push(Operation { parameters: WRITE, body: Body::Object(self.schema.to_owned()), ..operation });
        }
        if self.has(Verb::DeleteCollection) {
            let id = format!("delete{}Collection{}", self.group_prefix(), self.scoped_kind());
            let operation = self.operation("delete", "deletecollection", "delete", "delete collection of", "");
            let body = Body::DeleteOptions;
            operations.push(Operation { id, parameters: DELETE_COLLECTION, body, response: STATUS.to_owned(), ..operation });
        }
        operations
    }

    fn object_operations(&self) -> Vec<Operation> {
        let mut operations = self.read_and_write("", "", self.schema);
        operations.retain(|operation| match operation.action {
            "get" => self.has(Verb::Get),
            "put" => self.has(Verb::Update),
            _ => self.has(Verb::Patch),
        });
        if self.has(Verb::Delete) {
            let operation = self.operation("delete", "delete", "delete", "delete a", "");
            operations.push(Operation {
                parameters: DELETE,
                body: Body::DeleteOptions,
                response: STATUS.to_owned(),
                ..operation
            });
        }
        operations
    }

    fn read_and_write(&self, what: &str, suffix: &str, schema: &str) -> Vec<Operation> {
        let read = self.operation("get", "get", "read", &format!("read {what}the specified"), suffix);
        let replace = self.operation("put", "put", "replace", &format!("replace {what}the specified"), suffix);
        let patch = self.operation("patch", "patch", "patch", &format!("partially update {what}the specified"), suffix);
        let response = schema.to_owned();
        vec![
            Operation { response: response.clone(), ..read },
            Operation { parameters: WRITE, body: Body::Object(response.clone()), response: response.clone(), ..replace },
            Operation { parameters: PATCH, body: Body::Patch, response, ..patch },
        ]
    }

    fn subresource_operations(&self, subresource: Subresource) -> Vec<Operation> {
        let suffix = capitalized(subresource.as_str());
        let what = format!("{} of ", subresource.as_str());
        let create = |schema: &str| {
            let operation = self.operation("post", "post", "create", &format!("create {what}a"), &suffix);
            let (body, response) = (Body::Object(schema.to_owned()), schema.to_owned());
            vec![Operation { parameters: WRITE, body, response, kind: kind_of(schema), ..operation }]
        };
        let connect = |methods: &[&'static str]| {
            let connects = methods.iter().map(|method| {
                let verb = format!("connect{}", capitalized(method));
                let operation = self.operation(
                    method,
                    "connect",
                    &verb,
                    &format!("connect {} requests to {what}", method.to_uppercase()),
                    &suffix,
                );
                Operation { response: String::new(), ..operation }
            });
            connects.collect()
        };
        match subresource {
            Subresource::Approval | Subresource::EphemeralContainers | Subresource::Resize | Subresource::Status => {
                self.read_and_write(&what, &suffix, self.schema)
            }
            Subresource::Scale => {
                let schema = "io.k8s.api.autoscaling.v1.Scale";
                let operations = self.read_and_write(&what, &suffix, schema).into_iter();
                operations.map(|operation| Operation { kind: kind_of(schema), ..operation }).collect()
            }
            Subresource::Finalize => {
                let mut operations = self.read_and_write(&what, &suffix, self.schema);
                operations.retain(|operation| operation.action == "put");
                operations
            }
            Subresource::Binding => create("io.k8s.api.core.v1.Binding"),
            Subresource::Eviction => create("io.k8s.api.policy.v1.Eviction"),
            Subresource::Token => create("io.k8s.api.authentication.v1.TokenRequest"),
            Subresource::Log => vec![Operation {
                response: String::new(),
                ..self.operation("get", "get", "read", &format!("read {what}the specified"), &suffix)
            }],
            Subresource::Attach | Subresource::Exec | Subresource::PortForward => connect(&["get", "post"]),
            Subresource::Proxy => connect(&["get", "put", "post", "delete", "patch"]),
        }
    }
}

fn kind_of(schema: &str) -> (String, String, String) {
    let kind = crate::api::schema::get(schema).and_then(|found| found.kind);
    kind.map_or_else(Default::default, |kind| (kind.group.to_owned(), kind.version.to_owned(), kind.kind.to_owned()))
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
