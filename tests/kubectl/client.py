"""Creates, watches, reads, executes in, patches and deletes a pod and a Deployment with the official Python client."""

import json

import websocket
from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
assert client.VersionApi().get_code().major == "1"
assert {"default", "kube-system"} <= {namespace.metadata.name for namespace in core.list_namespace().items}

pod = {
    "metadata": {"name": "py", "labels": {"app": "py"}},
    "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "main", "image": "busybox:latest", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", "echo hello; sleep 100000"]}],
    },
}
# The service account of a new namespace comes a moment later.
for event in watch.Watch().stream(core.list_namespaced_service_account, "default", timeout_seconds=20):
    if event["object"].metadata.name == "default":
        break
core.create_namespaced_pod("default", pod)
for event in watch.Watch().stream(core.list_namespaced_pod, "default", label_selector="app=py", timeout_seconds=60):
    statuses = event["object"].status.container_statuses or []
    if statuses and statuses[0].ready:
        break
else:
    raise SystemExit("the pod did not become ready")
assert core.read_namespaced_pod_log("py", "default") == "hello\n"
assert stream(core.connect_get_namespaced_pod_exec, "py", "default", command=["echo", "inside"], stdout=True, stderr=True) == "inside\n"


def over_websocket(path, protocols=None):
    at = client.Configuration.get_default_copy()
    ssl = {"ca_certs": at.ssl_ca_cert, "certfile": at.cert_file, "keyfile": at.key_file}
    return websocket.create_connection(at.host.replace("https", "wss") + path, sslopt=ssl, subprotocols=protocols, timeout=20)


# As browsers read them: a watch is an event a message, a log comes as it is written.
events = over_websocket("/api/v1/namespaces/default/pods?watch=1&fieldSelector=metadata.name%3Dpy")
event = json.loads(events.recv())
assert event["type"] == "ADDED" and event["object"]["metadata"]["name"] == "py", event
core.patch_namespaced_pod("py", "default", {"metadata": {"labels": {"seen": "yes"}}})
event = json.loads(events.recv())
assert event["type"] == "MODIFIED" and event["object"]["metadata"]["labels"]["seen"] == "yes", event
events.close()
log = over_websocket("/api/v1/namespaces/default/pods/py/log?follow=true", ["binary.k8s.io"])
assert log.recv() == b"hello\n"
log.close()
log = over_websocket("/api/v1/namespaces/default/pods/py/log", ["base64.binary.k8s.io"])
assert log.recv() == "aGVsbG8K"
log.close()
try:
    over_websocket("/api/v1/namespaces/default/pods/nobody/log")
    raise SystemExit("the log of no pod was opened")
except websocket.WebSocketBadStatusException as error:
    assert error.status_code == 404, error

core.patch_namespaced_pod("py", "default", {"metadata": {"annotations": {"note": "patched"}}})
read = core.read_namespaced_pod("py", "default")
assert read.metadata.annotations["note"] == "patched" and read.status.pod_ip

read.metadata.resource_version = "1"
try:
    core.replace_namespaced_pod("py", "default", read)
    raise SystemExit("a stale update was taken")
except ApiException as error:
    assert error.status == 409, error

template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "main", "image": "nginx:1.14"}]}}
apps.create_namespaced_deployment("default", {"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "d"}}, "template": template}})
apps.patch_namespaced_deployment_scale("d", "default", {"spec": {"replicas": 2}})
for event in watch.Watch().stream(apps.list_namespaced_deployment, "default", timeout_seconds=60):
    if event["object"].status.ready_replicas == 2:
        break
else:
    raise SystemExit("the Deployment did not become ready")
apps.delete_namespaced_deployment("d", "default")
core.delete_namespaced_pod("py", "default")
print("done")
