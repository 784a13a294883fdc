//! The kinds of `storagemigration.k8s.io/v1`.

pub mod storage_version_migration;
