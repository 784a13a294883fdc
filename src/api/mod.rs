//! API machinery: pure data, no IO, no async, no clocks.
//!
//! [`Object`] is any API object; [`kind::Kind`] is everything known about a resource kind; [`status::ApiError`] is the one
//! error that reaches a client; [`field`] holds validation errors with their paths; [`selector`] and [`patch`] are the algebra.

pub mod field;
pub mod kind;
pub mod managed;
pub mod meta;
pub mod names;
pub mod object;
pub mod patch;
pub mod proto;
pub mod prune;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod yaml;

pub use kind::Kind;
pub use object::Object;
pub use status::ApiError;
