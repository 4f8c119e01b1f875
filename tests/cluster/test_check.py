"""Every shipped cluster file passes, and every kind of mistake is reported in a line that names the key.

The tests need no cloud and no Kubernetes.
"""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.check import check_file, main
from proav.errors import UserError
from proav.on_ray.resources import read_limits

ROOT = Path(__file__).parents[2]
LAUNCHER = ("aws", "gcp", "onprem")
KUBERAY = ("raycluster", "rayjob-train", "rayservice")
FILES = [ROOT / "cluster" / f"{name}.yaml" for name in LAUNCHER] + [
    ROOT / "cluster" / "kuberay" / f"{name}.yaml" for name in KUBERAY
]


def load(name: str) -> dict:
    path = next(path for path in FILES if path.stem == name)
    return copy.deepcopy(
        yaml.safe_load(path.read_text())
    )  # a copy: anchors make several places of a file one object


def mistake(tmp_path: Path, document: dict) -> str:
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError) as caught:
        check_file(str(path))
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_is_right_and_says_what_to_fill_in(path):
    left = check_file(str(path))
    assert left and all(line.startswith("YOUR-") for line in left)


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_the_limits_that_jobs_are_given_are_those_of_the_launchers_groups(name):
    document = load(name)
    told = next(
        option.partition("PROAV_CLUSTER_LIMITS=")[2]
        for option in document["docker"]["run_options"]
        if "PROAV_CLUSTER_LIMITS" in option
    )
    groups = [
        (group["max_workers"], group["resources"]) for group in document["available_node_types"].values()
    ]
    assert read_limits(told) == {
        kind: sum(most * resources.get(kind, 0) for most, resources in groups) for kind in ("CPU", "GPU")
    }


@pytest.mark.parametrize("name", ["raycluster", "rayjob-train"])
def test_the_limits_that_jobs_are_given_are_those_of_the_pods(name):
    spec = load(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    variables = {
        entry["name"]: entry["value"]
        for entry in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
    }
    groups = [
        (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in cluster["workerGroupSpecs"]
    ]
    keys = {"CPU": "cpu", "GPU": "nvidia.com/gpu"}
    assert read_limits(variables["PROAV_CLUSTER_LIMITS"]) == {
        kind: sum(most * float(limits.get(key, 0)) for most, limits in groups) for kind, key in keys.items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_that_is_filled_in_has_nothing_left(path, tmp_path):
    filled = tmp_path / path.name
    filled.write_text(path.read_text().replace("YOUR-", "my-").replace("my-REGISTRY", "registry.example/me"))
    assert check_file(str(filled)) == []


@pytest.mark.parametrize(
    "name, place, wrong, near",
    [
        ("aws", (), "head_node_typ", "head_node_type"),
        ("aws", ("provider",), "regoin", "region"),
        ("aws", ("docker",), "run_option", "run_options"),
        ("aws", ("available_node_types", "gpu"), "max_worker", "max_workers"),
        ("aws", ("available_node_types", "cpu", "node_config"), "InstanceTyp", "InstanceType"),
        (
            "aws",
            ("available_node_types", "gpu_spot", "node_config", "InstanceMarketOptions"),
            "MarketTyp",
            "MarketType",
        ),
        ("gcp", ("available_node_types", "cpu", "node_config"), "machineTyp", "machineType"),
        (
            "gcp",
            ("available_node_types", "gpu_spot", "node_config", "scheduling"),
            "provisioningModle",
            "provisioningModel",
        ),
        ("onprem", ("provider",), "worker_ip", "worker_ips"),
        ("onprem", ("auth",), "ssh_usr", "ssh_user"),
        ("raycluster", ("spec",), "autoscalerOption", "autoscalerOptions"),
        ("raycluster", ("spec", "headGroupSpec", "template", "spec"), "containres", "containers"),
        ("raycluster", ("spec", "workerGroupSpecs", 0), "maxReplica", "maxReplicas"),
        (
            "raycluster",
            ("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0),
            "resource",
            "resources",
        ),
        ("rayjob-train", ("spec",), "entrypont", "entrypoint"),
        ("rayservice", ("spec",), "serveConfigV", "serveConfigV2"),
    ],
)
def test_misspelt_key_is_named_with_the_nearest(name, place, wrong, near, tmp_path):
    document = load(name)
    inner = document
    for key in place:
        inner = inner[key]
    inner[wrong] = inner.pop(near, 1)
    message = mistake(tmp_path, document)
    assert f"{wrong}: unknown key; did you mean {near}?" in message


def change(name: str, place: tuple, value: object) -> dict:
    document = load(name)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return document


@pytest.mark.parametrize(
    "name, place, value, words",
    [
        ("aws", ("head_node_type",), "hed", "head_node_type: hed is none of available_node_types"),
        (
            "aws",
            ("available_node_types", "head", "resources"),
            {"CPU": 8},
            "available_node_types.head.resources: write {CPU: 0}",
        ),
        (
            "aws",
            ("available_node_types", "gpu", "resources"),
            {"GPU": 4},
            "available_node_types.gpu.resources: CPU is missing",
        ),
        ("aws", ("available_node_types", "gpu", "min_workers"), 3, "min_workers <= max_workers"),
        ("aws", ("available_node_types", "gpu", "docker"), {}, "has no CUDA"),
        (
            "aws",
            ("docker", "image"),
            "rayproject/ray:2.44.0-py311-cpu",
            "docker.image: Ray 2.44.0; proav needs",
        ),
        ("aws", ("docker", "image"), "rayproject/ray:latest", "has no fixed tag"),
        ("aws", ("max_workers",), "many", "max_workers"),
        ("aws", ("provider", "type"), "azur", "provider.type: azur; expected one of aws, gcp, local"),
        ("raycluster", ("spec", "rayVersion"), "2.44.0", "spec.rayVersion: Ray 2.44.0; proav needs"),
        ("raycluster", ("spec", "headGroupSpec", "rayStartParams"), {}, "no work is placed on the head"),
        (
            "raycluster",
            ("spec", "workerGroupSpecs", 0, "replicas"),
            9,
            "minReplicas <= replicas <= maxReplicas",
        ),
        (
            "raycluster",
            ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources"),
            {},
            "limits need cpu and memory",
        ),
        (
            "raycluster",
            ("kind",),
            "RayClutser",
            "kind: RayClutser; expected one of RayCluster, RayJob, RayService",
        ),
        ("raycluster", ("apiVersion",), "ray.io/v1alpha1", "expected ray.io/v1"),
        (
            "rayservice",
            ("spec", "serveConfigV2"),
            "applications: [{import_pth: x}]",
            "import_pth: unknown key; did you mean import_path?",
        ),
        (
            "rayservice",
            ("spec", "serveConfigV2"),
            "applications: [{name: a, import_path: nowhere}]",
            "import_path",
        ),
        (
            "rayservice",
            ("spec", "serveConfigV2"),
            "applications: [{import_path: 'proav.serve:app', args: {checkpont: x}}]",
            "applications[0].args: unknown setting checkpont=x; did you mean checkpoint?",
        ),
    ],
)
def test_broken_rule_is_reported(name, place, value, words, tmp_path):
    assert words in mistake(tmp_path, change(name, place, value))


def test_missing_machine_of_an_own_cluster_is_reported(tmp_path):
    document = load("onprem")
    del document["provider"]["head_ip"]
    assert "provider.head_ip is missing" in mistake(tmp_path, document)


def test_node_types_that_users_can_choose():
    for name in ("aws", "gcp"):
        document = load(name)
        types = document["available_node_types"]
        assert [resources["resources"].get("GPU", 0) > 0 for resources in types.values()] == [
            False,
            False,
            True,
            True,
        ]
        assert types["gpu"]["resources"] == types["gpu_spot"]["resources"]
        assert types["gpu_spot"]["max_workers"] == 0, (
            "a group that an account may have no quota for is off until the user turns it on"
        )
        assert all(
            "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][-1] for name in LAUNCHER
        )


def test_images_of_one_file_are_of_one_ray():
    for path in FILES:
        versions = {
            word for word in path.read_text().replace("-ray", ":").split(":") if word.startswith("2.")
        }
        assert len({version.split("-")[0].split('"')[0] for version in versions}) <= 1, path


def test_command_line(tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\nb: 2\n")
    assert main([str(FILES[0])]) == 0
    assert main([str(FILES[0]), str(broken), str(tmp_path / "none.yaml")]) == 2
    out, err = capsys.readouterr()
    assert f"{FILES[0]}: ok, once these are filled in:" in out
    assert f"error: {broken}: not YAML" in err and "error: " + str(tmp_path / "none.yaml") in err


def test_script_runs_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "cluster" / "check.py", FILES[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "ok" in done.stdout, done.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(FILES[0].read_text().replace("upscaling_speed", "upscalling_speed"))
    done = subprocess.run(
        [sys.executable, ROOT / "cluster" / "check.py", wrong],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip() == f"error: {wrong}: upscalling_speed: unknown key; did you mean upscaling_speed?"
    )
