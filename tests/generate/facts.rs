//! Facts of the API's Go types that neither source crate has: struct tags of `k8s.io/api`.

use super::openapi::{Field, Type, Types, squash};

/// Packages whose types have no protobuf form.
pub const NO_PROTOBUF: &[&str] = &["io.k8s.apimachinery.pkg.version."];

/// Groups whose v1beta1 is served as v1, as the next version of Kubernetes does.
pub const PROMOTED: &[&str] = &["certificates", "storagemigration"];

/// Packages whose messages have the tags of another version (they were promoted after the release of k8s-pb).
pub const SAME_AS: &[(&str, &str)] = &[
    ("api.admissionregistration.v1", "api.admissionregistration.v1beta1"),
    ("api.certificates.v1", "api.certificates.v1beta1"),
    ("api.storagemigration.v1", "api.storagemigration.v1beta1"),
];

/// Messages whose fields JSON shows in the message around them.
pub const INLINED: &[&str] = &[
    "deviceConfiguration",
    "ephemeralContainerCommon",
    "handler",
    "ingressRuleValue",
    "localObjectReference",
    "persistentVolumeSource",
    "rule",
    "ruleWithOperations",
    "volumeSource",
];

/// Tags of fields that are newer than k8s-pb, and of those whose names differ; 0: an alpha field that is JSON only here.
pub const TAGS: &[(&str, u32)] = &[
    ("io.k8s.api.certificates.v1.PodCertificateRequestSpec.stubPKCS10Request", 12),
    ("io.k8s.api.core.v1.ImageVolumeStatus.imageRef", 1),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus.containers", 0),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus.resourceClaimName", 0),
    ("io.k8s.api.core.v1.NodeAllocatableResourceClaimStatus.resources", 0),
    ("io.k8s.api.core.v1.PodSchedulingGroup.podGroupName", 1),
    ("io.k8s.api.core.v1.PodSpec.schedulingGroup", 43),
    ("io.k8s.api.core.v1.PodStatus.nodeAllocatableResourceClaimStatuses", 0),
    ("io.k8s.api.core.v1.ResourceHealth.message", 3),
    ("io.k8s.api.core.v1.VolumeMountStatus.volumeStatus", 5),
    ("io.k8s.api.core.v1.VolumeStatus.image", 1),
    ("io.k8s.api.resource.v1.Device.nodeAllocatableResourceMappings", 0),
    ("io.k8s.api.resource.v1.DeviceAttribute.bools", 7),
    ("io.k8s.api.resource.v1.DeviceAttribute.ints", 6),
    ("io.k8s.api.resource.v1.DeviceAttribute.strings", 8),
    ("io.k8s.api.resource.v1.DeviceAttribute.versions", 9),
    ("io.k8s.api.resource.v1.NodeAllocatableResourceMapping.allocationMultiplier", 0),
    ("io.k8s.api.resource.v1.NodeAllocatableResourceMapping.capacityKey", 1),
    ("io.k8s.api.storage.v1.CSIDriverSpec.preventPodSchedulingIfMissing", 11),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta.shardInfo", 5),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ShardInfo.selector", 1),
];

/// Structs that server-side apply replaces as a whole.
const ATOMIC_STRUCTS: &[&str] = &[
    "ConfigMapKeySelector",
    "ConfigMapNodeConfigSource",
    "CrossVersionObjectReference",
    "EndpointAddress",
    "EndpointPort",
    "LabelSelector",
    "LocalObjectReference",
    "MatchResources",
    "NamedRuleWithOperations",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ParamKind",
    "ParamRef",
    "ResourceFieldSelector",
    "RoleRef",
    "ScopeSelector",
    "ScopedResourceSelectorRequirement",
    "SecretKeySelector",
    "SecretReference",
    "ServiceBackendPort",
    "Subject",
    "TopologySelectorTerm",
    "TypedLocalObjectReference",
];

/// Lists that server-side apply merges by key and a strategic merge patch replaces.
const APPLY_ONLY: &[&str] = &[
    "AllocatedDeviceStatus.conditions",
    "CertificateSigningRequestStatus.conditions",
    "CustomResourceDefinitionStatus.conditions",
    "ResourceClaimStatus.devices",
    "ResourceRequirements.claims",
    "ResourceStatus.resources",
    "ValidatingAdmissionPolicyStatus.conditions",
];

/// Lists that a strategic merge patch merges by key and server-side apply replaces.
const PATCH_ONLY: &[&str] = &["JobStatus.conditions", "PodStatus.hostIPs", "StatefulSetSpec.volumeClaimTemplates"];

/// Lists whose keys for server-side apply are more than their merge key.
const APPLY_KEYS: &[(&str, &[&str])] = &[
    ("Container.ports", &["containerPort", "protocol"]),
    ("EphemeralContainer.ports", &["containerPort", "protocol"]),
    ("PodSpec.topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("ServiceSpec.ports", &["port", "protocol"]),
];

/// Patch strategies that the lists above do not tell.
const STRATEGIES: &[(&str, &str)] = &[
    ("DeploymentSpec.strategy", "retainKeys"),
    ("NodeSpec.podCIDRs", "merge"),
    ("ObjectMeta.finalizers", "merge"),
    ("PodDisruptionBudgetSpec.selector", "replace"),
    ("PodSpec.resourceClaims", "merge,retainKeys"),
    ("PodSpec.volumes", "merge,retainKeys"),
    ("PodStatus.resourceClaimStatuses", "merge,retainKeys"),
    ("StatefulSetSpec.volumeClaimTemplates", ""),
];

const DEFAULTS: &[(&str, &str)] = &[
    ("AzureDiskVolumeSource.cachingMode", "ReadWrite"),
    ("AzureDiskVolumeSource.fsType", "ext4"),
    ("AzureDiskVolumeSource.kind", "Shared"),
    ("ContainerPort.protocol", "TCP"),
    ("ISCSIPersistentVolumeSource.iscsiInterface", "default"),
    ("ISCSIVolumeSource.iscsiInterface", "default"),
    ("RBDPersistentVolumeSource.keyring", "/etc/ceph/keyring"),
    ("RBDPersistentVolumeSource.pool", "rbd"),
    ("RBDPersistentVolumeSource.user", "admin"),
    ("RBDVolumeSource.keyring", "/etc/ceph/keyring"),
    ("RBDVolumeSource.pool", "rbd"),
    ("RBDVolumeSource.user", "admin"),
    ("ScaleIOPersistentVolumeSource.fsType", "xfs"),
    ("ScaleIOPersistentVolumeSource.storageMode", "ThinProvisioned"),
    ("ScaleIOVolumeSource.fsType", "xfs"),
    ("ScaleIOVolumeSource.storageMode", "ThinProvisioned"),
    ("ServicePort.protocol", "TCP"),
];

/// Required fields that k8s-openapi has as optional.
const REQUIRED: &[&str] = &[
    "PodDisruptionBudgetStatus.currentHealthy",
    "PodDisruptionBudgetStatus.desiredHealthy",
    "PodDisruptionBudgetStatus.disruptionsAllowed",
    "PodDisruptionBudgetStatus.expectedPods",
    "TokenRequestStatus.expirationTimestamp",
    "TokenRequestStatus.token",
];

/// Optional strings that are pointers in Go: an empty one is not an absent one.
const POINTER_STRINGS: &[&str] = &[
    "AllocatedDeviceStatus.shareID",
    "AppArmorProfile.localhostProfile",
    "AzureDiskVolumeSource.cachingMode",
    "AzureDiskVolumeSource.fsType",
    "AzureDiskVolumeSource.kind",
    "AzureFilePersistentVolumeSource.secretNamespace",
    "CSIDriverSpec.fsGroupPolicy",
    "CSIVolumeSource.fsType",
    "ClusterTrustBundleProjection.name",
    "ClusterTrustBundleProjection.signerName",
    "Container.restartPolicy",
    "ContainerStatus.stopSignal",
    "CronJobSpec.timeZone",
    "CustomResourceDefinitionVersion.deprecationWarning",
    "CustomResourceSubresourceScale.labelSelectorPath",
    "DeleteOptions.propagationPolicy",
    "Device.nodeName",
    "DeviceAttribute.string",
    "DeviceAttribute.version",
    "DeviceClassSpec.extendedResourceName",
    "DeviceConstraint.distinctAttribute",
    "DeviceConstraint.matchAttribute",
    "DeviceRequestAllocationResult.shareID",
    "Endpoint.hostname",
    "Endpoint.nodeName",
    "Endpoint.zone",
    "EndpointAddress.nodeName",
    "EndpointPort.appProtocol",
    "EndpointPort.name",
    "EndpointPort.protocol",
    "GRPCAction.service",
    "GlusterfsPersistentVolumeSource.endpointsNamespace",
    "HPAScalingRules.selectPolicy",
    "HostPathVolumeSource.type",
    "ISCSIPersistentVolumeSource.initiatorName",
    "ISCSIVolumeSource.initiatorName",
    "IngressClassParametersReference.apiGroup",
    "IngressClassParametersReference.namespace",
    "IngressClassParametersReference.scope",
    "IngressPortStatus.error",
    "IngressSpec.ingressClassName",
    "JSONSchemaProps.x-kubernetes-list-type",
    "JSONSchemaProps.x-kubernetes-map-type",
    "JobSpec.completionMode",
    "JobSpec.managedBy",
    "JobSpec.podReplacementPolicy",
    "JobStatus.failedIndexes",
    "LeaseSpec.holderIdentity",
    "LeaseSpec.preferredHolder",
    "LeaseSpec.strategy",
    "Lifecycle.stopSignal",
    "LoadBalancerIngress.ipMode",
    "LocalVolumeSource.fsType",
    "MatchResources.matchPolicy",
    "MutatingAdmissionPolicySpec.failurePolicy",
    "MutatingWebhook.failurePolicy",
    "MutatingWebhook.matchPolicy",
    "MutatingWebhook.reinvocationPolicy",
    "NetworkPolicyPort.protocol",
    "ParamRef.parameterNotFoundAction",
    "PersistentVolumeClaimSpec.storageClassName",
    "PersistentVolumeClaimSpec.volumeAttributesClassName",
    "PersistentVolumeClaimSpec.volumeMode",
    "PersistentVolumeClaimStatus.currentVolumeAttributesClassName",
    "PersistentVolumeSpec.volumeAttributesClassName",
    "PersistentVolumeSpec.volumeMode",
    "PodDNSConfigOption.value",
    "PodDisruptionBudgetSpec.unhealthyPodEvictionPolicy",
    "PodFailurePolicyOnExitCodesRequirement.containerName",
    "PodResourceClaim.resourceClaimName",
    "PodResourceClaim.resourceClaimTemplateName",
    "PodResourceClaimStatus.resourceClaimName",
    "PodSchedulingGroup.podGroupName",
    "PodSecurityContext.fsGroupChangePolicy",
    "PodSecurityContext.seLinuxChangePolicy",
    "PodSecurityContext.supplementalGroupsPolicy",
    "PodSpec.hostnameOverride",
    "PodSpec.preemptionPolicy",
    "PodSpec.runtimeClassName",
    "PortStatus.error",
    "Preconditions.resourceVersion",
    "Preconditions.uid",
    "PriorityClass.preemptionPolicy",
    "ResourceHealth.message",
    "ResourceSliceSpec.nodeName",
    "SeccompProfile.localhostProfile",
    "SecurityContext.procMount",
    "ServicePort.appProtocol",
    "ServiceReference.path",
    "ServiceSpec.internalTrafficPolicy",
    "ServiceSpec.ipFamilyPolicy",
    "ServiceSpec.loadBalancerClass",
    "ServiceSpec.trafficDistribution",
    "StorageClass.reclaimPolicy",
    "StorageClass.volumeBindingMode",
    "SuccessPolicyRule.succeededIndexes",
    "TopologySpreadConstraint.nodeAffinityPolicy",
    "TopologySpreadConstraint.nodeTaintsPolicy",
    "TypedLocalObjectReference.apiGroup",
    "TypedObjectReference.apiGroup",
    "TypedObjectReference.namespace",
    "ValidatingAdmissionPolicySpec.failurePolicy",
    "ValidatingWebhook.failurePolicy",
    "ValidatingWebhook.matchPolicy",
    "Validation.reason",
    "ValidationRule.reason",
    "VolumeAttachmentSource.persistentVolumeName",
    "VolumeMount.mountPropagation",
    "VolumeMount.recursiveReadOnly",
    "VolumeMountStatus.recursiveReadOnly",
    "WebhookClientConfig.url",
    "WindowsSecurityContextOptions.gmsaCredentialSpec",
    "WindowsSecurityContextOptions.gmsaCredentialSpecName",
    "WindowsSecurityContextOptions.runAsUserName",
];

/// Optional numbers and booleans that are no pointers in Go: zero and false are absent. `*` stands for any type, or any whose
/// name ends so.
const PLAIN: &[&str] = &[
    "*.hostPort",
    "*.readOnly",
    "*.stdin",
    "*.stdinOnce",
    "*.tty",
    "*Status.*",
    "APIServiceSpec.insecureSkipTLSVerify",
    "AWSElasticBlockStoreVolumeSource.partition",
    "Condition.observedGeneration",
    "ContainerImage.sizeBytes",
    "ContainerStateTerminated.signal",
    "CustomResourceColumnDefinition.priority",
    "CustomResourceDefinitionCondition.observedGeneration",
    "CustomResourceDefinitionSpec.preserveUnknownFields",
    "CustomResourceDefinitionVersion.deprecated",
    "DaemonSetSpec.minReadySeconds",
    "DeploymentSpec.minReadySeconds",
    "DeploymentSpec.paused",
    "DeviceSubRequest.count",
    "Event.count",
    "Event.deprecatedCount",
    "EventSeries.count",
    "ExactDeviceRequest.count",
    "GCEPersistentDiskVolumeSource.partition",
    "GRPCAction.port",
    "ISCSIPersistentVolumeSource.chapAuthDiscovery",
    "ISCSIPersistentVolumeSource.chapAuthSession",
    "ISCSIVolumeSource.chapAuthDiscovery",
    "ISCSIVolumeSource.chapAuthSession",
    "JSONSchemaProps.exclusiveMaximum",
    "JSONSchemaProps.exclusiveMinimum",
    "JSONSchemaProps.nullable",
    "JSONSchemaProps.uniqueItems",
    "JSONSchemaProps.x-kubernetes-embedded-resource",
    "JSONSchemaProps.x-kubernetes-int-or-string",
    "NodeSpec.unschedulable",
    "ObjectMeta.generation",
    "PodCondition.observedGeneration",
    "PodSpec.hostIPC",
    "PodSpec.hostNetwork",
    "PodSpec.hostPID",
    "PriorityClass.globalDefault",
    "Probe.failureThreshold",
    "Probe.initialDelaySeconds",
    "Probe.periodSeconds",
    "Probe.successThreshold",
    "Probe.timeoutSeconds",
    "ReplicaSetSpec.minReadySeconds",
    "ReplicationControllerSpec.minReadySeconds",
    "ResourcePolicyRule.clusterScope",
    "ScaleIOPersistentVolumeSource.sslEnabled",
    "ScaleIOVolumeSource.sslEnabled",
    "ScaleSpec.replicas",
    "ServiceBackendPort.number",
    "ServicePort.nodePort",
    "ServiceSpec.healthCheckNodePort",
    "ServiceSpec.publishNotReadyAddresses",
    "StatefulSetSpec.minReadySeconds",
    "StatusDetails.retryAfterSeconds",
];

/// Exceptions from the entries of `PLAIN` with a star.
const POINTERS: &[&str] = &[
    "AzureDiskVolumeSource.readOnly",
    "CSIVolumeSource.readOnly",
    "ContainerStatus.started",
    "DaemonSetStatus.collisionCount",
    "DeploymentStatus.collisionCount",
    "DeploymentStatus.terminatingReplicas",
    "HorizontalPodAutoscalerStatus.currentCPUUtilizationPercentage",
    "HorizontalPodAutoscalerStatus.observedGeneration",
    "JobStatus.ready",
    "JobStatus.terminating",
    "MetricValueStatus.averageUtilization",
    "NodeSwapStatus.capacity",
    "ReplicaSetStatus.terminatingReplicas",
    "StatefulSetStatus.collisionCount",
];

/// Writes the facts into the types. Names are those of upstream's structs, without the package.
pub fn apply(types: &mut Types) {
    let names: Vec<String> = types.keys().cloned().collect();
    for name in names {
        let mut found = types.remove(&name).expect("a key of the map");
        let short = name.rsplit('.').next().expect("a name");
        found.atomic = ATOMIC_STRUCTS.contains(&short);
        for (field_name, field) in &mut found.fields {
            let path = format!("{short}.{field_name}");
            field.required |= REQUIRED.contains(&path.as_str());
            lists(types, &path, field);
            zeroes(&path, short, field);
            field.default = find(DEFAULTS, &path).unwrap_or("").to_owned();
        }
        types.insert(name, found);
    }
}

fn find<'a>(table: &[(&str, &'a str)], path: &str) -> Option<&'a str> {
    table.iter().find(|(name, _)| *name == path).map(|(_, value)| *value)
}

fn lists(types: &Types, path: &str, field: &mut Field) {
    if field.list_type == "map" {
        let item = field.shape.trim_start_matches("[]&");
        field.list_keys = field.list_keys.iter().map(|key| json_name(types.get(item), key)).collect();
        if !APPLY_ONLY.contains(&path) {
            field.patch_strategy = "merge".into();
            field.patch_key = field.list_keys.first().cloned().unwrap_or_default();
        }
    }
    if let Some(strategy) = find(STRATEGIES, path) {
        field.patch_strategy = strategy.to_owned();
    }
    if let Some((_, keys)) = APPLY_KEYS.iter().find(|(name, _)| *name == path) {
        field.list_keys = keys.iter().map(|key| (*key).to_owned()).collect();
    }
    if PATCH_ONLY.contains(&path) {
        field.list_type = "atomic".into();
    }
}

/// The JSON name of a Rust field.
fn json_name(item: Option<&Type>, key: &str) -> String {
    let squashed = squash(key);
    item.and_then(|item| item.fields.keys().find(|name| squash(name) == squashed)).cloned().unwrap_or_else(|| key.to_owned())
}

fn zeroes(path: &str, short: &str, field: &mut Field) {
    let scalar = matches!(field.shape.as_str(), "string" | "bool" | "int32" | "int64" | "double" | "bytes");
    let name = path.rsplit('.').next().expect("a name");
    let plain = |entry: &&str| {
        let (kind, wanted) = entry.split_once('.').expect("a type and a field");
        let kind_matches = kind.strip_prefix('*').map_or(kind == short, |suffix| short.ends_with(suffix));
        kind_matches && (wanted == "*" || wanted == name)
    };
    field.zero_is_absent = scalar
        && !field.required
        && match field.shape.as_str() {
            "string" | "bytes" => !POINTER_STRINGS.contains(&path),
            _ => PLAIN.iter().any(|entry| plain(&entry)) && !POINTERS.contains(&path),
        };
}
