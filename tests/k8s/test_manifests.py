"""The resources in deploy/k8s are what llmaz accepts and renders."""

import copy

import llmaz
import pytest
import yaml
from pod import BACKEND, EXAMPLES, MULTI_HOST, ROOT

CRDS = llmaz.load_crds()
DOCUMENTS = llmaz.load_documents(BACKEND, *EXAMPLES, MULTI_HOST)


def find(kind, name):
    (found,) = (d for d in DOCUMENTS if (d["kind"], d["metadata"]["name"]) == (kind, name))
    return found


def changed(kind, name, **spec):
    """A copy of a resource with fields of its spec replaced; None removes one."""
    document = copy.deepcopy(find(kind, name))
    document["spec"].update(spec)
    document["spec"] = {k: v for k, v in document["spec"].items() if v is not None}
    return document


def label(document):
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_llmaz_accepts(document):
    assert llmaz.errors_of(document, CRDS) == []


def test_every_playground_is_rendered():
    commands = {
        d["metadata"]["name"]: llmaz.render(d, DOCUMENTS)
        for d in DOCUMENTS
        if d["kind"] == "Playground"
    }
    assert len(commands) == len(EXAMPLES)
    for name, command in commands.items():
        assert command[:2] == ["quire", "serve"]
        assert command[command.index("--served-model-name") + 1] == name
        assert command[command.index("--port") + 1] == "8080"
    assert commands["qwen3-8b"][2:4] == ["--model", "/workspace/models/models--Qwen--Qwen3-8B"]
    assert commands["qwen3-8b"][-2:] == ["--max-model-len", "16384"]
    assert commands["quire-demo"][3] == "/usr/share/quire/models/demo"


def test_a_draft_claim_selects_speculative_decoding():
    playground = find("Playground", "qwen2-5-3b")
    _, roles = llmaz.claimed_models(
        playground, {d["metadata"]["name"]: d for d in DOCUMENTS if d["kind"] == "OpenModel"}
    )
    assert llmaz.config_name(playground, roles) == "speculative-decoding"
    command = llmaz.render(playground, DOCUMENTS)
    assert command[command.index("--speculative-model") + 1] == (
        "/workspace/models/models--Qwen--Qwen2.5-0.5B-Instruct"
    )
    # The order of the claims does not matter, the roles do.
    claims = playground["spec"]["modelClaims"]["models"]
    swapped = changed("Playground", "qwen2-5-3b", modelClaims={"models": claims[::-1]})
    assert llmaz.render(swapped, DOCUMENTS) == command


def test_the_pods_of_a_group():
    service = find("Service", "llama3-1-405b")
    leader, worker = llmaz.render_group(service, "leader.pods")
    assert leader[:2] == ["quire", "serve"]
    (differs,) = (i for i, (a, b) in enumerate(zip(leader, worker)) if a != b)
    assert (leader[differs - 1], leader[differs], worker[differs]) == ("--node-rank", "0", "1")
    for name, value in {
        "--nnodes": "2",
        "--pipeline-parallel-size": "2",
        "--tensor-parallel-size": "8",
        "--dist-init-addr": "leader.pods:20000",
        "--port": "8080",
    }.items():
        assert leader[leader.index(name) + 1] == value
    # What llmaz's loader makes of the model, and the GPUs that it injects.
    model = find("OpenModel", "llama3-1-405b")
    assert leader[leader.index("--model") + 1] == llmaz.model_path(model, False)
    limits = model["spec"]["inferenceConfig"]["flavors"][0]["limits"]
    assert limits["nvidia.com/gpu"] == int(leader[leader.index("--tensor-parallel-size") + 1])
    # Drained before the kubelet kills it.
    assert int(leader[leader.index("--shutdown-timeout") + 1]) < 130


def renamed_worker():
    service = changed("Service", "llama3-1-405b")
    worker = service["spec"]["workloadTemplate"]["workerTemplate"]
    worker["spec"]["containers"][0]["name"] = "main"
    return service


def misspelled_leader():
    service = changed("Service", "llama3-1-405b")
    container = service["spec"]["workloadTemplate"]["leaderTemplate"]["spec"]["containers"][0]
    container["argz"] = container.pop("args")
    return service


def test_the_pod_has_time_to_drain():
    """llmaz fixes terminationGracePeriodSeconds at 130, preStop included."""
    spec = find("BackendRuntime", "quire")["spec"]
    pre_stop = spec["lifecycle"]["preStop"]["exec"]["command"]
    drain = int(pre_stop[pre_stop.index("--timeout") + 1])
    for config in spec["recommendedConfigs"]:
        args = config["args"]
        assert drain + int(args[args.index("--shutdown-timeout") + 1]) < 130


def test_the_published_first_example_lacks_its_gpu():
    """llmaz's README: `requests` in a flavor, which the schema does not know."""
    model = yaml.safe_load(FIRST_EXAMPLE)
    assert llmaz.errors_of(model, CRDS) == [
        ".spec.inferenceConfig.flavors[0]: unknown field requests"
    ]
    flavor = model["spec"]["inferenceConfig"]["flavors"][0]
    flavor["limits"] = flavor.pop("requests")
    assert llmaz.errors_of(model, CRDS) == []


FIRST_EXAMPLE = """
apiVersion: llmaz.io/v1alpha1
kind: OpenModel
metadata: {name: opt-125m}
spec:
  familyName: opt
  source: {modelHub: {modelID: deepseek-ai/DeepSeek-R1}}
  inferenceConfig: {flavors: [{name: default, requests: {nvidia.com/gpu: 1}}]}
"""

HUB = {"modelID": "Qwen/Qwen3-8B"}


@pytest.mark.parametrize(
    "document, error",
    [
        (changed("BackendRuntime", "quire", commands=["quire"]), "unknown field commands"),
        (renamed_worker(), "no container of the workers is model-runner"),
        (misspelled_leader(), "unknown field argz"),
        (changed("BackendRuntime", "quire", version=None), "version is missing"),
        (changed("BackendRuntime", "quire", version=1), "wants string"),
        (
            changed("BackendRuntime", "quire", recommendedConfigs=[{"name": "a"}, {"name": "a"}]),
            "a twice",
        ),
        (
            changed(
                "BackendRuntime",
                "quire",
                recommendedConfigs=[
                    {"name": "a", "resources": {"requests": {"cpu": 2}, "limits": {"cpu": "500m"}}}
                ],
            ),
            "limit of cpu",
        ),
        (changed("OpenModel", "qwen3-8b", source={}), "neither modelHub nor uri"),
        (changed("OpenModel", "qwen3-8b", source={"uri": "ftp://a/b"}), "no supported protocol"),
        (changed("OpenModel", "qwen3-8b", source={"uri": "s3://bucket"}), "no bucket and path"),
        (
            changed(
                "OpenModel",
                "qwen3-8b",
                source={"modelHub": {**HUB, "filename": "a.gguf", "allowPatterns": ["*"]}},
            ),
            "excludes patterns",
        ),
        (changed("Playground", "qwen3-8b", modelClaim=None), "exactly one of"),
        (changed("Playground", "qwen3-8b", replicas="1"), "wants integer"),
        (
            changed(
                "Playground",
                "qwen2-5-3b",
                modelClaims={"models": [{"name": "qwen2-5-3b", "role": "lora"}]},
            ),
            "'lora' is none of",
        ),
        (
            changed(
                "Playground",
                "qwen2-5-3b",
                modelClaims={"models": [{"name": "qwen2-5-3b", "role": "draft"}]},
            ),
            "draft model",
        ),
        (
            changed("Playground", "qwen3-8b", elasticConfig={"minReplicas": 1, "maxReplicas": 1}),
            "not below",
        ),
    ],
)
def test_faults_are_found(document, error):
    errors = llmaz.errors_of(document, CRDS)
    assert len(errors) == 1 and error in errors[0], errors


def test_names_and_scopes():
    model = copy.deepcopy(find("OpenModel", "qwen3-8b"))
    model["metadata"] = {"name": "qwen3.8b", "namespace": "default"}
    assert len(llmaz.errors_of(model, CRDS)) == 2
    assert llmaz.errors_of({"apiVersion": "v1", "kind": "Pod"}, CRDS)


@pytest.mark.parametrize(
    "source, is_skipped, path",
    [
        ({"modelHub": HUB}, False, "/workspace/models/models--Qwen--Qwen3-8B"),
        ({"modelHub": HUB}, True, "Qwen/Qwen3-8B"),
        ({"modelHub": {**HUB, "filename": "q/a.gguf"}}, False, "/workspace/models/q/a.gguf"),
        ({"uri": "s3://bucket/models/Qwen3-8B"}, True, "s3://bucket/models/Qwen3-8B"),
        ({"uri": "oss://b.endpoint/p/Qwen2-7B"}, False, "/workspace/models/models--Qwen2-7B"),
        ({"uri": "oss://b.endpoint/p/a.gguf"}, False, "/workspace/models/a.gguf"),
        ({"uri": "host:///srv/model"}, False, "/srv/model"),
    ],
)
def test_model_paths(source, is_skipped, path):
    assert llmaz.model_path(changed("OpenModel", "qwen3-8b", source=source), is_skipped) == path


@pytest.mark.parametrize(
    "config, error",
    [
        ({"backendName": "other"}, "no BackendRuntime other"),
        ({}, "no BackendRuntime vllm"),
        ({"backendName": "quire", "configName": "x"}, "no config x"),
        # Without a second model there is no DraftModelPath.
        ({"backendName": "quire", "configName": "speculative-decoding"}, "DraftModelPath"),
    ],
)
def test_what_cannot_be_rendered(config, error):
    playground = changed("Playground", "qwen3-8b", backendRuntimeConfig=config)
    with pytest.raises(llmaz.RenderError, match=error):
        llmaz.render(playground, DOCUMENTS)


def test_only_the_configuration_is_rendered():
    playground = changed(
        "Playground",
        "qwen3-8b",
        backendRuntimeConfig={"backendName": "quire", "args": ["{{ .ModelName }}"]},
    )
    assert llmaz.render(playground, DOCUMENTS)[-1] == "{{ .ModelName }}"


def test_the_image_is_the_one_that_is_built():
    """tools/image.sh tags the image with the program's version."""
    spec = find("BackendRuntime", "quire")["spec"]
    source = (ROOT / "cli" / "version.h").read_text()
    assert f'"{spec["version"]}"' in source
