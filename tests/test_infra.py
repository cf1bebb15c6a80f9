"""What infra/ says agrees with the package: commands parse, versions match, YAML fits KubeRay, the image is lean."""

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

from batchgen.cli import main

ROOT = Path(__file__).parents[1]
INFRA = ROOT / "infra"
SCHEMA = ROOT.parent / "shared" / "schemas" / "kuberay-rayjobs-v1.json"

RAYJOB: dict[str, Any] = yaml.safe_load((INFRA / "kuberay" / "rayjob.yaml").read_text())
CLUSTER: dict[str, Any] = RAYJOB["spec"]["rayClusterSpec"]
PODS: dict[str, dict[str, Any]] = {
    "head": CLUSTER["headGroupSpec"]["template"]["spec"],
    **{group["groupName"]: group["template"]["spec"] for group in CLUSTER["workerGroupSpecs"]},
}
CONSTRAINTS = [
    Requirement(line)
    for line in (INFRA / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest), comments left out and continued lines joined."""
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def argument(name: str) -> str:
    """Default of one build argument of the Dockerfile."""
    return dict(rest.split("=", 1) for word, rest in dockerfile() if word == "ARG")[name]


def commands() -> list[str]:
    """Every call of batchgen in infra/: the job's entry point, and those in the runbook's text and shell blocks."""
    runbook = (INFRA / "README.md").read_text()
    found = [RAYJOB["spec"]["entrypoint"], *re.findall(r"`(batchgen [^`\n]+)`", runbook)]
    for block in re.findall(r"```sh\n(.*?)```", runbook, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "batchgen" in words[:-1]:
                found.append(shlex.join(words[words.index("batchgen") :]))
    return found


@pytest.mark.parametrize("command", commands())
def test_command_parses_and_its_job_exists(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the image's working folder holds jobs/ and manifests/ likewise
    program, name, *arguments = shlex.split(command)
    assert program == "batchgen"
    assert isinstance(main, click.Group)
    context = main.make_context(program, [name])
    subcommand = main.get_command(context, name)
    assert subcommand is not None, f"batchgen has no command {name}"
    subcommand.make_context(name, list(arguments), parent=context)
    for word in arguments:
        if word.endswith(".toml"):
            assert Path(word).is_file(), f"{word} does not exist"


def test_entry_point_runs_on_the_cluster_it_is_in() -> None:
    words = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert words[words.index("--address") + 1] == "auto"
    assert words[words.index("--output") + 1].startswith("s3://")


def test_image_tag_is_the_package_version_everywhere() -> None:
    texts = [path.read_text() for path in INFRA.rglob("*") if path.is_file()]
    tags = [tag for text in texts for tag in re.findall(r"registry\.example\.com/batchgen:([\w.]+)", text)]
    assert len(tags) >= 6
    assert set(tags) == {PROJECT["version"]}
    for pod in PODS.values():
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["image"] == f"registry.example.com/batchgen:{PROJECT['version']}"


def test_ray_in_image_cluster_and_project_agree() -> None:
    """Head, workers and driver must have one Ray, which is the one the Dockerfile installs."""
    version = argument("RAY_VERSION")
    assert CLUSTER["rayVersion"] == version
    installs = [rest for word, rest in dockerfile() if word == "RUN" and "pip install" in rest]
    assert any('"ray[default]==${RAY_VERSION}"' in rest for rest in installs)
    optional = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    rays = [ray for ray in map(Requirement, [*PROJECT["dependencies"], *optional]) if ray.name == "ray"]
    assert rays
    for ray in rays:
        assert version in ray.specifier


def test_image_takes_torch_from_the_project() -> None:
    """The project gives a range; the Dockerfile installs the tested one by the constraints and names no other."""
    needs = {need.name: need for need in map(Requirement, PROJECT["dependencies"])}
    text = " ".join(rest for word, rest in dockerfile() if word in ("ARG", "RUN"))
    assert "['project']['dependencies']" in text
    assert "-r requirements.txt" in text
    assert "-c constraints.txt" in text
    assert not re.search(r"\btorch\s*[=<>~]=", text)
    for pin in CONSTRAINTS:
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert needs[pin.name].specifier.contains(exact.version), pin
    assert "torch" in {pin.name for pin in CONSTRAINTS}


def test_one_ray_in_image_and_constraints() -> None:
    (ray,) = [pin for pin in CONSTRAINTS if pin.name == "ray"]
    assert str(ray.specifier) == f"=={argument('RAY_VERSION')}"


def test_image_is_not_root_and_pods_agree_on_who() -> None:
    users = [rest for word, rest in dockerfile() if word == "USER"]
    uid, gid = map(int, users[-1].split(":"))
    assert uid != 0
    assert dockerfile()[-1][0] != "USER"  # the last one stands before the entry point, so nothing after it can be root
    for pod in PODS.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (uid, gid)
        assert pod["securityContext"]["fsGroup"] == gid  # the cache volume is writable through it
        for container in (*pod["initContainers"], *pod["containers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_image_holds_no_weights_but_the_package_own() -> None:
    """The builder sees named paths alone, each copied, and none with weights in it except the package itself."""
    copied = {
        source
        for word, rest in dockerfile()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    first, *rules = [line for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] != "#"]
    assert first == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    weights = {".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf"}
    for source in copied - {"batchgen"}:
        assert (ROOT / source).exists()
        assert not [path for path in (ROOT / source).rglob("*") if path.suffix in weights]
    runs = " ".join(rest for word, rest in dockerfile() if word == "RUN")
    assert not re.search(r"\b(hf|huggingface-cli|from_pretrained|curl|git)\b", runs)
    assert any(word == "ENV" and "HF_HUB_OFFLINE=1" in rest for word, rest in dockerfile())


def test_build_stages_share_a_base_pinned_by_tag() -> None:
    stages = [rest.split()[0] for word, rest in dockerfile() if word == "FROM"]
    assert len(stages) > 1
    assert set(stages) == {"${BASE}"}  # one Python at one path, which the virtual environment depends on
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-\w+-ubuntu\d+\.\d+", argument("BASE"))


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, as Kubernetes' strict decoding does; the CRD itself leaves them open."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: closed(part) for key, part in schema.items()}
    if parts.get("type") == "object" and isinstance(parts.get("properties"), dict):
        parts.setdefault("additionalProperties", False)
    return parts


@pytest.mark.skipif(not SCHEMA.is_file(), reason="KubeRay's JSON schemas are not beside this checkout")
def test_rayjob_fits_kuberay_schema() -> None:
    validator = jsonschema.Draft202012Validator(closed(json.loads(SCHEMA.read_text())))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(RAYJOB)] == []
    misspelt = {**RAYJOB, "spec": {**RAYJOB["spec"], "ttlSecondsAfterFinish": 1}}
    assert not validator.is_valid(misspelt)


def test_rayjob_ends_by_itself_and_drains() -> None:
    spec = RAYJOB["spec"]
    assert "generateName" in RAYJOB["metadata"]  # submitting again is how a run resumes
    assert spec["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in spec  # KubeRay refuses it together with the two beside it
    assert 0 < spec["ttlSecondsAfterFinished"] < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] >= 1
    (limits,) = [
        tomllib.loads((ROOT / word).read_text())["limits"]
        for word in shlex.split(spec["entrypoint"])
        if word.endswith(".toml")
    ]
    assert spec["activeDeadlineSeconds"] > 3600 * limits["max_hours"]  # the job's own, clean end comes first
    (head,) = PODS["head"]["containers"]
    waits = {entry["name"]: int(entry["value"]) for entry in head["env"]}
    assert waits["RAY_JOB_STOP_WAIT_TIME_S"] >= 600  # a shard is up to ten minutes of work


def test_head_takes_no_gpu_work_and_workers_do() -> None:
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, pod in PODS.items():
        (container,) = pod["containers"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name != "head")


@pytest.mark.parametrize("name", PODS)
def test_pod_is_complete(name: str) -> None:
    """Each mount has its volume, shared memory is memory, S3 keys are optional, the service account is the one here."""
    pod = PODS[name]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    for container in (*pod["initContainers"], *pod["containers"]):
        paths = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert paths["/dev/shm"]["medium"] == "Memory"
        assert "/var/cache/batchgen" in paths
    (container,) = pod["containers"]
    assert [source["secretRef"]["optional"] for source in container["envFrom"]] == [True]
    account = yaml.safe_load((INFRA / "kuberay" / "serviceaccount.yaml").read_text())
    assert pod["serviceAccountName"] == account["metadata"]["name"]


def test_model_cache_is_where_the_image_looks() -> None:
    home = re.search(r"HF_HOME=(\S+)", (INFRA / "Dockerfile").read_text())
    assert home is not None
    assert Path("/var/cache/batchgen") in Path(home[1]).parents
