//! The planner against the words of the API, against a naive reading of them, and against the clock.

mod figures;
mod kernel;
mod model;
mod oracle;
mod random;
mod semantics;
