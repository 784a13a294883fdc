//! The controllers: trait [`Controller`], the table `CONTROLLERS`, one runner and one queue for all.
//!
//! A controller is a pure function `(observed, desired) -> actions` and a thin async shell that reads caches, calls it and
//! executes. Reconcile takes a key and nothing else.
