//! The content of volumes that come from the API: ConfigMap, Secret, downward API, and projections of all these, of tokens,
//! trust anchors and certificates.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use futures_util::TryFutureExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ClusterTrustBundleProjection, ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, PodCertificateProjection,
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::atomic::{FileContent, Files};
use super::certificate::Credentials;
use super::{Volumes, is_local, trust};
use crate::agent::pod::context::Context;
use crate::agent::pod::fields::{field_value, resource_value};
use crate::agent::sources::FIRST_LOOK;
use crate::client::ClientError;

const DEFAULT_MODE: i32 = 0o644;

/// What a volume is to hold.
#[derive(Debug, Default)]
pub struct Gathered {
    pub files: Files,
    /// Secrets never touch the disk.
    pub on_tmpfs: bool,
    /// When a token or certificate in it must be renewed.
    pub renew_at: Option<Timestamp>,
}

/// Why the content is not known.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// Something is missing or wrong.
    #[error("{0}")]
    Invalid(String),
    /// The API does not answer.
    #[error("{0}")]
    Unavailable(String),
}

impl From<crate::agent::sources::SourceError> for GatherError {
    fn from(error: crate::agent::sources::SourceError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl GatherError {
    /// What the API said, after `what` failed.
    pub fn of_api(what: &str, error: &ClientError) -> Self {
        let why = format!("{what}: {error}");
        // A server that is starting, stopping or has no quorum answers, but not yet.
        let refuses = error.api().is_some_and(|error| error.code < 500 && error.code != 429);
        if refuses { Self::Invalid(why) } else { Self::Unavailable(why) }
    }
}

fn invalid(why: impl Into<String>) -> GatherError {
    GatherError::Invalid(why.into())
}

/// All that is at hand while gathering.
struct Gatherer<'a> {
    volumes: &'a Volumes,
    context: &'a Context,
    pod: &'a Pod,
    pod_ip: Option<IpAddr>,
    out: Gathered,
}

/// The content of a volume and the name of its plugin; `None` for a kind that has no content of its own.
pub async fn gather(
    volumes: &Volumes,
    context: &Context,
    pod: &Pod,
    volume: &Volume,
    pod_ip: Option<IpAddr>,
) -> Option<(&'static str, Result<Gathered, GatherError>)> {
    let mut gatherer = Gatherer { volumes, context, pod, pod_ip, out: Gathered::default() };
    let (plugin, result) = if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let result = gatherer.config_map(&source.name, source.items.as_deref(), source.optional == Some(true), mode).await;
        ("kubernetes.io~configmap", result)
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or("");
        let result = gatherer.secret(name, source.items.as_deref(), source.optional == Some(true), mode).await;
        ("kubernetes.io~secret", result)
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        ("kubernetes.io~downward-api", gatherer.downward(source.items.as_deref(), mode))
    } else if let Some(source) = &volume.projected {
        ("kubernetes.io~projected", gatherer.projected(&volume.name, source).await)
    } else {
        return None;
    };
    Some((plugin, result.map(|()| gatherer.out)))
}

impl Gatherer<'_> {
    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or("")
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("")
    }

    async fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: i32,
    ) -> Result<(), GatherError> {
        let data = match self.context.sources.config_map(self.uid(), self.namespace(), name, FIRST_LOOK).await? {
            Some(found) => bytes_of(&found),
            None if optional => return Ok(()),
            None => return Err(invalid(format!("configmap \"{name}\" not found"))),
        };
        self.keys(&data, items, optional, mode, "config")
    }

    async fn secret(&mut self, name: &str, items: Option<&[KeyToPath]>, optional: bool, mode: i32) -> Result<(), GatherError> {
        self.out.on_tmpfs = true;
        let data = match self.context.sources.secret(self.uid(), self.namespace(), name, FIRST_LOOK).await? {
            Some(found) => found.data.clone().unwrap_or_default(),
            None if optional => return Ok(()),
            None => return Err(invalid(format!("secret \"{name}\" not found"))),
        };
        self.keys(&data, items, optional, mode, "secret")
    }

    fn keys(
        &mut self,
        data: &BTreeMap<String, ByteString>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: i32,
        what: &str,
    ) -> Result<(), GatherError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return data.iter().try_for_each(|(key, value)| self.put(key, value.0.clone(), mode));
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => self.put(&item.path, value.0.clone(), item.mode.unwrap_or(mode))?,
                None if optional => {}
                None => return Err(invalid(format!("references non-existent {what} key: {}", item.key))),
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>, mode: i32) -> Result<(), GatherError> {
        let path = PathBuf::from(path);
        if path.as_os_str().is_empty() || !is_local(&path) {
            return Err(invalid(format!("invalid path {:?}: it leads out of the volume", path.display().to_string())));
        }
        let mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
        self.out.files.insert(path, FileContent { bytes, mode });
        Ok(())
    }

    fn downward(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<(), GatherError> {
        for item in items.unwrap_or(&[]) {
            let fields = self.context.fields(self.pod, self.pod_ip);
            let text = if let Some(field) = &item.field_ref {
                field_value(&fields, &field.field_path)
            } else if let Some(selector) = &item.resource_field_ref {
                let name = selector.container_name.as_deref().unwrap_or("");
                let spec = self.pod.spec.iter();
                let mut all = spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
                let container = all.find(|container| container.name == name);
                container
                    .ok_or_else(|| format!("container {name} not found"))
                    .and_then(|container| resource_value(selector, container, &fields.allocatable))
            } else {
                Err("neither fieldRef nor resourceFieldRef is given".to_owned())
            };
            self.put(&item.path, text.map_err(invalid)?.into_bytes(), item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }

    async fn projected(&mut self, volume: &str, source: &ProjectedVolumeSource) -> Result<(), GatherError> {
        self.out.on_tmpfs = true;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let sources = || source.sources.iter().flatten();
        // All are asked for before the first is waited for.
        let certificates = sources().enumerate().filter_map(|(index, projection)| {
            let wanted = projection.pod_certificate.as_ref()?;
            let got = self.volumes.certificates.get(self.context, self.pod, (volume, index), wanted);
            Some(got.map_ok(move |credentials| (wanted, credentials)))
        });
        let certificates = futures_util::future::join_all(certificates).await;
        for projection in sources().filter(|projection| projection.pod_certificate.is_none()) {
            self.project(projection, mode).await?;
        }
        for certificate in certificates {
            let (wanted, credentials) = certificate?;
            self.certificate(wanted, credentials, mode)?;
        }
        Ok(())
    }

    async fn project(&mut self, projection: &VolumeProjection, mode: i32) -> Result<(), GatherError> {
        if let Some(source) = &projection.config_map {
            self.config_map(&source.name, source.items.as_deref(), source.optional == Some(true), mode).await
        } else if let Some(source) = &projection.secret {
            self.secret(&source.name, source.items.as_deref(), source.optional == Some(true), mode).await
        } else if let Some(source) = &projection.downward_api {
            self.downward(source.items.as_deref(), mode)
        } else if let Some(source) = &projection.service_account_token {
            self.token(source, mode).await
        } else if let Some(source) = &projection.cluster_trust_bundle {
            self.anchors(source, mode).await
        } else {
            Err(invalid("a projection of this kind is not supported by this version"))
        }
    }

    async fn token(&mut self, source: &ServiceAccountTokenProjection, mode: i32) -> Result<(), GatherError> {
        let now = self.context.clock.now();
        let token = self.volumes.tokens.get(&self.context.client, self.pod, source, now).await;
        let token = token.map_err(|error| GatherError::of_api("failed to fetch token", &error))?;
        self.renew_at(token.renew_at);
        self.put(&source.path, token.text.into_bytes(), self.private(mode))
    }

    fn certificate(&mut self, source: &PodCertificateProjection, credentials: Credentials, mode: i32) -> Result<(), GatherError> {
        self.renew_at(credentials.renew_at);
        let (key, chain, mode) = (credentials.key_pem, credentials.chain_pem, self.private(mode));
        let files = [
            (&source.credential_bundle_path, format!("{key}{chain}")),
            (&source.key_path, key),
            (&source.certificate_chain_path, chain),
        ];
        for (path, text) in files {
            if let Some(path) = path.as_ref().filter(|path| !path.is_empty()) {
                self.put(path, text.into_bytes(), mode)?;
            }
        }
        Ok(())
    }

    /// Something in the volume must be renewed at this time.
    fn renew_at(&mut self, at: Timestamp) {
        self.out.renew_at = Some(self.out.renew_at.map_or(at, |known| known.min(at)));
    }

    async fn anchors(&mut self, source: &ClusterTrustBundleProjection, mode: i32) -> Result<(), GatherError> {
        let bundles = self.context.sources.bundles(self.uid(), FIRST_LOOK).await?;
        let text = trust::anchors(&bundles, source).map_err(invalid)?;
        self.put(&source.path, text.into_bytes(), self.private(mode))
    }

    /// The mode of a file that the pod's group owns, where it has one.
    fn private(&self, mode: i32) -> i32 {
        let security = self.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        if security.is_some_and(|security| security.fs_group.is_some()) { 0o600 } else { mode }
    }
}

fn bytes_of(config_map: &ConfigMap) -> BTreeMap<String, ByteString> {
    let text = config_map.data.iter().flatten().map(|(key, value)| (key.clone(), ByteString(value.clone().into_bytes())));
    text.chain(config_map.binary_data.clone().into_iter().flatten()).collect()
}
