#!/usr/bin/env python3
"""What llmaz does with its resources before a container starts, offline.

    tests/k8s/llmaz.py FILE.yaml...

checks OpenModels, Playgrounds, Services and BackendRuntimes against the schemas in
crds/ and the rules of llmaz's webhooks, and prints the command of each Playground's
container, and those of a Service's pods. Unknown fields are errors here, where an API server drops them in
silence. Not checked: the normal form of quantities, what a kubelet accepts.

The rules are those of InftyAI/llmaz at commit 3c13ff3: pkg/webhook,
pkg/controller_helper/backendruntime and pkg/controller_helper/modelsource.
"""

import gzip
import pathlib
import re
import sys

import yaml

CRDS = pathlib.Path(__file__).resolve().parent / "crds"
MODEL_VOLUME = "/workspace/models"
DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# Not Go templates: anything else in braces stays as it is.
VARIABLE = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")
URI_PROTOCOLS = ("GCS", "OSS", "S3", "OLLAMA", "HOST")
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{prefix}i": 1024**power for power, prefix in enumerate("KMGT", start=1)
}


class RenderError(Exception):
    """llmaz would log this and never create the workload."""


def load_crds(directory=CRDS):
    """{(apiVersion, kind): (schema, is_cluster_scoped)}"""
    crds = {}
    # libyaml's loader, where there is one: the schema of pods is long.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(directory.glob("*.yaml*")):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        spec = yaml.load(data, Loader=loader)["spec"]
        for version in spec["versions"]:
            key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
            crds[key] = (version["schema"]["openAPIV3Schema"], spec["scope"] == "Cluster")
    return crds


def load_documents(*paths):
    documents = []
    for path in paths:
        documents += filter(None, yaml.safe_load_all(pathlib.Path(path).read_text()))
    return documents


def schema_errors(value, schema, path):
    """Violations of the structural schema below `path`, as text."""
    if value is None:
        return [] if schema.get("nullable") else [f"{path}: null"]
    if schema.get("x-kubernetes-int-or-string"):
        return int_or_string_errors(value, schema, path)
    kind = schema.get("type")
    if kind in TYPES:
        is_wrong_bool = isinstance(value, bool) and kind != "boolean"
        if is_wrong_bool or not isinstance(value, TYPES[kind]):
            return [f"{path}: wants {kind}, is {value!r}"]
    errors = []
    if "enum" in schema and value not in schema["enum"]:
        errors.append(f"{path}: {value!r} is none of {schema['enum']}")
    if "minimum" in schema and value < schema["minimum"]:
        errors.append(f"{path}: {value} is less than {schema['minimum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        errors.append(f"{path}: {value!r} does not match {schema['pattern']}")
    if kind == "array":
        errors += array_errors(value, schema, path)
    elif kind == "object":
        errors += object_errors(value, schema, path)
    return errors


def int_or_string_errors(value, schema, path):
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return [f"{path}: wants an integer or a string, is {value!r}"]
    pattern = schema.get("pattern")
    if pattern and isinstance(value, str) and not re.search(pattern, value):
        return [f"{path}: {value!r} does not match {pattern}"]
    return []


def array_errors(value, schema, path):
    errors = []
    if len(value) > schema.get("maxItems", len(value)):
        errors.append(f"{path}: more than {schema['maxItems']} items")
    if len(value) < schema.get("minItems", 0):
        errors.append(f"{path}: fewer than {schema['minItems']} items")
    for index, item in enumerate(value):
        errors += schema_errors(item, schema["items"], f"{path}[{index}]")
    if "x-kubernetes-list-map-keys" in schema and not errors:
        keys = [tuple(map(item.get, schema["x-kubernetes-list-map-keys"])) for item in value]
        errors += [f"{path}: {key} twice" for key in sorted(set(keys)) if keys.count(key) > 1]
    return errors


def object_errors(value, schema, path):
    properties = schema.get("properties", {})
    additional = schema.get("additionalProperties")
    errors = [
        f"{path}: {name} is missing" for name in schema.get("required", []) if name not in value
    ]
    for name, item in value.items():
        if name in properties:
            errors += schema_errors(item, properties[name], f"{path}.{name}")
        elif isinstance(additional, dict):
            errors += schema_errors(item, additional, f"{path}.{name}")
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            errors.append(f"{path}: unknown field {name}")
    return errors


def quantity(value):
    """A Kubernetes quantity as a number; enough units for what is compared."""
    number, unit = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()
    return float(number) * UNITS[unit]


def resource_errors(resources):
    """Limits must not be below requests."""
    requests = resources.get("requests", {})
    return [
        f"the limit of {name} is below its request"
        for name, limit in resources.get("limits", {}).items()
        if name in requests and quantity(limit) < quantity(requests[name])
    ]


def open_model_errors(spec):
    source = spec.get("source", {})
    hub, uri = source.get("modelHub"), source.get("uri")
    if hub is None and uri is None:
        return ["source: neither modelHub nor uri"]
    errors = []
    if uri is not None:
        protocol, separator, address = uri.partition("://")
        bucket, _, key = address.partition("/")
        if not separator or protocol.upper() not in URI_PROTOCOLS:
            errors.append(f"source.uri: {uri!r} has no supported protocol")
        elif protocol.upper() in ("OSS", "S3", "GCS") and not (bucket and key):
            errors.append(f"source.uri: {uri!r} names no bucket and path")
        elif protocol.upper() == "OSS" and "." not in bucket:
            errors.append(f"source.uri: {uri!r} names no endpoint")
    if hub and hub.get("filename"):
        if hub.get("name", "Huggingface") != "Huggingface":
            errors.append("source.modelHub: filename goes only with Huggingface")
        if "allowPatterns" in hub or "ignorePatterns" in hub:
            errors.append("source.modelHub: filename excludes patterns")
    return errors


def playground_errors(spec):
    errors = []
    if ("modelClaim" in spec) == ("modelClaims" in spec):
        errors.append("exactly one of modelClaim and modelClaims")
    roles = [claim.get("role", "main") for claim in spec.get("modelClaims", {}).get("models", [])]
    if "draft" in roles and len(roles) != 2:
        errors.append("modelClaims: a draft model goes with exactly one other")
    errors += resource_errors(spec.get("backendRuntimeConfig", {}).get("resources", {}))
    elastic = spec.get("elasticConfig")
    if elastic is not None:
        if elastic.get("minReplicas", 1) == 0:
            errors.append("elasticConfig: minReplicas is 0")
        if elastic.get("minReplicas", 1) >= elastic.get("maxReplicas", 0):
            errors.append("elasticConfig: minReplicas is not below maxReplicas")
        if not elastic.get("scaleTrigger", {"hpa": True}).get("hpa"):
            errors.append("elasticConfig: scaleTrigger without hpa")
    return errors


def backend_runtime_errors(spec):
    configs = spec.get("recommendedConfigs", [])
    names = [config["name"] for config in configs]
    errors = [f"recommendedConfigs: {name} twice" for name in set(names) if names.count(name) > 1]
    for config in configs:
        errors += resource_errors(config.get("resources", {}))
    return errors


def service_errors(spec):
    errors = []
    claims = spec.get("modelClaims", {}).get("models", [])
    roles = [claim.get("role", "main") for claim in claims]
    if "draft" in roles and (len(roles) != 2 or roles.count("main") != 1):
        errors.append("modelClaims: a draft model goes with exactly one main model")
    workload = spec.get("workloadTemplate", {})
    containers = [
        container
        for name in ("leaderTemplate", "workerTemplate")
        for container in workload.get(name, {}).get("spec", {}).get("containers", [])
    ]
    worker = workload.get("workerTemplate", {}).get("spec", {}).get("containers", [])
    if not any(container.get("name") == "model-runner" for container in worker):
        errors.append("workloadTemplate: no container of the workers is model-runner")
    for container in containers:
        errors += resource_errors(container.get("resources", {}))
    return errors


WEBHOOKS = {
    "Service": service_errors,
    "OpenModel": open_model_errors,
    "Playground": playground_errors,
    "BackendRuntime": backend_runtime_errors,
}


def errors_of(document, crds):
    """Why llmaz would refuse `document`, or what of it would be dropped."""
    key = (document.get("apiVersion"), document.get("kind"))
    if key not in crds:
        return [f"{key} is no resource of llmaz"]
    schema, is_cluster_scoped = crds[key]
    metadata = document.get("metadata", {})
    # The schema of metadata is Kubernetes' own.
    properties = {k: v for k, v in schema["properties"].items() if k != "metadata"}
    body = {k: v for k, v in document.items() if k != "metadata"}
    errors = schema_errors(body, {**schema, "properties": properties}, "")
    if is_cluster_scoped and "namespace" in metadata:
        errors.append("metadata.namespace: the resource is cluster-scoped")
    if not DNS_LABEL.fullmatch(metadata.get("name", "")):
        errors.append("metadata.name: no DNS label")
    return errors or WEBHOOKS[key[1]](document.get("spec", {}))


def model_path(model, is_loader_skipped):
    """{{ .ModelPath }}: where llmaz's loader puts a model, or what it is called."""
    source = model["spec"]["source"]
    hub = source.get("modelHub")
    if hub:
        if is_loader_skipped:
            return hub["modelID"]
        name = hub.get("filename") or "models--" + hub["modelID"].replace("/", "--")
        return f"{MODEL_VOLUME}/{name}"
    protocol, address = source["uri"].split("://")
    if protocol.upper() == "HOST":
        return address
    if is_loader_skipped:
        return source["uri"]
    last = address.rsplit("/", 1)[-1]
    return f"{MODEL_VOLUME}/{last if '.gguf' in address else 'models--' + last}"


def model_name(model):
    """{{ .ModelName }}: what clients send as `model`."""
    protocol, _, address = model["spec"]["source"].get("uri", "").partition("://")
    return address if protocol.upper() == "OLLAMA" else model["metadata"]["name"]


def claimed_models(playground, models):
    """The claimed OpenModels, the main one first, and the roles."""
    spec = playground["spec"]
    if "modelClaim" in spec:
        claims = [{"name": spec["modelClaim"]["modelName"]}]
    else:
        claims = sorted(
            spec["modelClaims"]["models"], key=lambda claim: claim.get("role", "main") != "main"
        )
    for claim in claims:
        if claim["name"] not in models:
            raise RenderError(f"there is no OpenModel {claim['name']}")
    roles = [claim.get("role", "main") for claim in claims]
    return [models[claim["name"]] for claim in claims], roles


def config_name(playground, roles):
    default = "speculative-decoding" if "draft" in roles else "default"
    return playground["spec"].get("backendRuntimeConfig", {}).get("configName", default)


def render(playground, documents):
    """The command and arguments of the Playground's container, as one list.

    Only the arguments of the BackendRuntime's configuration are rendered: neither
    its command nor the Playground's own arguments, which come last.
    """
    by_kind = {}
    for document in documents:
        by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    own = playground["spec"].get("backendRuntimeConfig", {})
    backend = by_kind.get("BackendRuntime", {}).get(own.get("backendName", "vllm"))
    if backend is None:
        raise RenderError(f"there is no BackendRuntime {own.get('backendName', 'vllm')}")
    models, roles = claimed_models(playground, by_kind.get("OpenModel", {}))
    name = config_name(playground, roles)
    configs = {c["name"]: c for c in backend["spec"].get("recommendedConfigs", [])}
    if name not in configs:
        raise RenderError(f"BackendRuntime {backend['metadata']['name']} has no config {name}")

    annotations = playground["metadata"].get("annotations", {})
    is_loader_skipped = annotations.get("llmaz.io/skip-model-loader") == "true"
    values = {
        "ModelPath": model_path(models[0], is_loader_skipped),
        "ModelName": model_name(models[0]),
    }
    if len(models) > 1:
        values["DraftModelPath"] = model_path(models[1], is_loader_skipped)

    def value_of(match):
        if not values.get(match[1]):
            raise RenderError(f"unknown variable {match[0]}")
        return values[match[1]]

    args = [VARIABLE.sub(value_of, arg) for arg in configs[name].get("args", [])]
    return backend["spec"].get("command", []) + args + own.get("args", [])


def render_group(service, leader_address="leader"):
    """The commands of a group's pods, the leader's first, as the kubelets run them.

    LeaderWorkerSet (v0.6.2) puts its variables first in every container's
    environment, so that arguments may name them.
    """
    workload = service["spec"]["workloadTemplate"]
    size = workload["size"]
    commands = []
    for index in range(size):
        template = workload.get("leaderTemplate" if index == 0 else "workerTemplate")
        template = template or workload["workerTemplate"]
        (container,) = (
            c for c in template["spec"]["containers"] if c["name"] == "model-runner"
        )
        values = {
            "LWS_LEADER_ADDRESS": leader_address,
            "LWS_GROUP_SIZE": str(size),
            "LWS_WORKER_INDEX": str(index),
        }
        # What is not defined stays as it is.
        commands.append(
            [
                re.sub(r"\$\((\w+)\)", lambda m: values.get(m[1], m[0]), part)
                for part in container["command"] + container["args"]
            ]
        )
    return commands


def main():
    crds = load_crds()
    documents = load_documents(*sys.argv[1:])
    is_bad = False
    for document in documents:
        name = f"{document.get('kind')} {document.get('metadata', {}).get('name')}"
        errors = errors_of(document, crds)
        is_bad |= bool(errors)
        print("\n  ".join([f"{name}: {'refused' if errors else 'ok'}", *errors]))
    for document in documents:
        if document.get("kind") == "Service" and not is_bad:
            for command in render_group(document):
                print(f"{document['metadata']['name']}:", *command)
        if document.get("kind") == "Playground":
            try:
                print(f"{document['metadata']['name']}:", *render(document, documents))
            except RenderError as error:
                is_bad = True
                print(f"{document['metadata']['name']}: not started: {error}")
    sys.exit(is_bad)


if __name__ == "__main__":
    main()
