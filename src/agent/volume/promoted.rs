//! Kinds of certificates.k8s.io that are served as v1, with the fields of v1beta1: `k8s_openapi` has no types of theirs.

/// Says of a type with `metadata` which kind it is: its scope, kind and plural.
macro_rules! promoted {
    ($type:ty, $scope:ty, $kind:literal, $plural:literal) => {
        impl k8s_openapi::Resource for $type {
            const API_VERSION: &'static str = "certificates.k8s.io/v1";
            const GROUP: &'static str = "certificates.k8s.io";
            const KIND: &'static str = $kind;
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }

        impl k8s_openapi::Metadata for $type {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(super) use promoted;
