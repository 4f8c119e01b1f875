"""Finds mistakes in a cluster file before a cloud or Kubernetes does: `python cluster/check.py FILE ...`

Checks files of the cluster launcher (`ray up`) and of KubeRay. It contacts no cloud and starts nothing. Exit
status 0: no mistake. The files can be used after you fill in what is listed. Exit status 2: a mistake. One
line names its key. cluster/shapes.py has the keys that a file may have.
"""

import difflib
import json
import logging
import re
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import ray
import yaml
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent))
from shapes import ANY, KUBERAY, LAUNCHER_PROVIDER, METADATA, NODE_CONFIGS, SERVE_KEYS  # noqa: E402

from proav.errors import UserError  # noqa: E402

PLACEHOLDER = re.compile(r"YOUR-[A-Z0-9-]+")
RAY_IN_IMAGE = re.compile(r"rayproject/ray:(\d+\.\d+\.\d+)|-ray(\d+\.\d+\.\d+)")


def check_file(path: str) -> list[str]:
    """Checks one cluster file; returns what is left to fill in, as lines.

    Raises UserError for the first mistake, with its place in the file.
    """
    try:
        documents = [
            document for document in yaml.safe_load_all(Path(path).read_text()) if document is not None
        ]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; expected a cluster file, such as cluster/aws.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise UserError(f"{path}: expected settings of a cluster, as in cluster/aws.yaml")
    try:
        for document in documents:
            check_kuberay(document) if "apiVersion" in document else check_launcher(document)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    places: dict[str, list[str]] = {}
    for where, text in (found for document in documents for found in texts(document)):
        for word in PLACEHOLDER.findall(text):
            places.setdefault(word, []).append(where)
    return [
        f"{word}  in {where[0]}" + (f" and {len(where) - 1} more" if len(where) > 1 else "")
        for word, where in places.items()
    ]


def check_launcher(config: dict[str, Any]) -> None:
    """Checks a cluster launcher file: its keys, the rules between node types, and what `ray up` checks."""
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())["properties"]
    # min_workers is for machines of your own; Ray moves it elsewhere
    shape = dict.fromkeys(schema, ANY) | {"min_workers": ANY, "cluster_name!": ANY}
    shape |= {key: dict.fromkeys(schema[key]["properties"], ANY) for key in ("auth", "docker")}
    shape["provider!"] = dict.fromkeys(schema["provider"]["properties"], ANY) | LAUNCHER_PROVIDER
    check_keys(config, shape, "")
    kind = config["provider"]["type"]
    if kind not in NODE_CONFIGS:
        raise UserError(f"provider.type: {kind}; expected one of {', '.join(NODE_CONFIGS)}")
    node_type = schema["available_node_types"]["patternProperties"][".*"]["properties"]
    for name, node in (config.get("available_node_types") or {}).items():
        node_shape = dict.fromkeys(node_type, ANY) | {
            "docker": dict.fromkeys(node_type["docker"]["properties"], ANY),
            "node_config": NODE_CONFIGS[kind],
        }
        check_keys(node, node_shape, f"available_node_types.{name}")
    if kind == "local" and "coordinator_address" not in config["provider"]:
        check_keys(config["provider"], shape["provider!"] | {"head_ip!": ANY, "worker_ips!": ANY}, "provider")
    check_node_types(config)
    check_images(config)
    check_by_ray(config)


def check_node_types(config: dict[str, Any]) -> None:
    """Checks rules between node types that Ray does not check.

    If one is broken, the cloud refuses the nodes, or a job waits for ever.
    """
    types = config.get("available_node_types") or {}
    if not types:
        return  # machines of your own: Ray has only one type for them
    head = config.get("head_node_type")
    if head not in types:
        raise UserError(f"head_node_type: {head} is none of available_node_types ({', '.join(types)})")
    for name, node in types.items():
        where, resources = f"available_node_types.{name}", node.get("resources") or {}
        if name == head:
            if resources.get("CPU") != 0:
                raise UserError(f"{where}.resources: write {{CPU: 0}}, so that no work is placed on the head")
            continue
        if not resources.get("CPU"):
            raise UserError(f"{where}.resources: CPU is missing; the autoscaler chooses nodes by it")
        most = config.get("max_workers", 0)
        check_order(
            where,
            {
                "0": 0,
                "min_workers": node.get("min_workers", 0),
                "max_workers": node.get("max_workers", most),
                "the file's max_workers": most,
            },
        )
        image = (node.get("docker") or {}).get("worker_image", (config.get("docker") or {}).get("image", ""))
        if resources.get("GPU") and image.endswith("-cpu"):
            raise UserError(
                f"{where}: has GPUs, but its image {image} has no CUDA; name another in "
                f"{where}.docker.worker_image"
            )


def check_by_ray(config: dict[str, Any]) -> None:
    """Makes the checks of `ray up`: fills in defaults and compares with Ray's schema. Contacts no cloud."""
    import jsonschema

    # `ray up` calls them; they have no public name
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path))
        raise UserError(f"{where or 'the file'}: {error.message.splitlines()[0]}") from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error


def check_kuberay(document: dict[str, Any]) -> None:
    """Checks a RayCluster, RayJob or RayService: its keys, down to those of containers, and proav's needs."""
    kind = document.get("kind")
    if kind not in KUBERAY:
        raise UserError(f"kind: {kind}; expected one of {', '.join(KUBERAY)}")
    if document["apiVersion"] != "ray.io/v1":
        raise UserError(f"apiVersion: {document['apiVersion']}; expected ray.io/v1")
    check_keys(
        document, {"apiVersion!": ANY, "kind!": ANY, "metadata!": METADATA, "spec!": KUBERAY[kind]}, ""
    )
    spec = document["spec"]
    place = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec", "RayService": "spec.rayClusterConfig"}[
        kind
    ]
    cluster = spec if kind == "RayCluster" else spec[place.removeprefix("spec.")]
    if cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
        raise UserError(
            f'{place}.headGroupSpec.rayStartParams: write {{num-cpus: "0"}}, '
            "so that no work is placed on the head"
        )
    groups = {"headGroupSpec": cluster["headGroupSpec"]}
    for index, group in enumerate(cluster.get("workerGroupSpecs", [])):
        groups[f"workerGroupSpecs[{index}]"] = group
        numbers = {
            "0": 0,
            "minReplicas": group["minReplicas"],
            "replicas": group.get("replicas", group["minReplicas"]),
            "maxReplicas": group["maxReplicas"],
        }
        check_order(f"{place}.workerGroupSpecs[{index}]", numbers)
    for name, group in groups.items():
        container = group["template"]["spec"]["containers"][0]
        limits = container.get("resources", {}).get("limits", {})
        if "memory" not in limits or "cpu" not in limits:
            raise UserError(
                f"{place}.{name}: the first container's resources.limits need cpu and memory; Ray takes a "
                "pod's size from them"
            )
        if "nvidia.com/gpu" in limits and container["image"].endswith("-cpu"):
            raise UserError(f"{place}.{name}: has GPUs, but its image {container['image']} has no CUDA")
    if kind == "RayService":
        check_serve_config(spec["serveConfigV2"])
    check_images(document)
    check_ray_version(cluster["rayVersion"], f"{place}.rayVersion")


def check_serve_config(text: str) -> None:
    """Checks the Serve configuration in a RayService against Serve's schema and proav's settings."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    where = "spec.serveConfigV2"
    try:
        config = yaml.safe_load(text)
        check_keys(config, SERVE_KEYS, where)
        ServeDeploySchema.model_validate(config)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for index, application in enumerate(config["applications"]):
        if application["import_path"] == "proav.serve:app":
            from proav.serve.settings import read_settings

            try:
                read_settings(application.get("args") or {})
            except UserError as error:
                raise UserError(f"{where}.applications[{index}].args: {error}") from None


def check_images(document: Any) -> None:
    """Checks that images have a fixed tag and, if they name a Ray version, one that proav can use.

    Nodes with another version of Ray cannot join.
    """
    for where, text in texts(document):
        if where.rpartition(".")[2] in ("image", "head_image", "worker_image"):
            found = RAY_IN_IMAGE.search(text)
            if found:
                check_ray_version(found[1] or found[2], where)
            if text.endswith(":latest") or ":" not in text.rpartition("/")[2]:
                raise UserError(
                    f"{where}: {text} has no fixed tag; nodes that start later would get another image"
                )


def check_ray_version(version: str, where: str) -> None:
    wanted = next(
        requirement for requirement in map(Requirement, requires("proav") or ()) if requirement.name == "ray"
    )
    if version not in wanted.specifier:
        raise UserError(
            f"{where}: Ray {version}; proav needs {wanted.specifier} (installed here: {ray.__version__})"
        )


def check_order(where: str, numbers: dict[str, Any]) -> None:
    """Raises UserError unless the values are whole numbers that do not decrease."""
    for name, number in numbers.items():
        if not isinstance(number, int):
            raise UserError(f"{where}: {name} is {number!r}; expected a whole number")
    if list(numbers.values()) != sorted(numbers.values()):
        raise UserError(
            f"{where}: {' <= '.join(numbers)} must hold; given {', '.join(map(str, numbers.values()))}"
        )


def check_keys(value: Any, shape: Any, where: str) -> None:
    """Compares keys with a shape: {key: shape, "required key!": shape}, [shape] for a list, or ANY.

    Raises UserError for the first key that does not fit.
    """
    if shape is ANY:
        return
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list")
        for index, item in enumerate(value):
            check_keys(item, shape[0], f"{where}[{index}]")
        return
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected keys with values, found {value!r}")
    shapes = {key.removesuffix("!"): inner for key, inner in shape.items()}
    for key, inner in value.items():
        if key not in shapes:
            near = difflib.get_close_matches(str(key), shapes, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(sorted(shapes))}"
            raise UserError(f"{join(where, key)}: unknown key; {hint}")
        check_keys(inner, shapes[key], join(where, key))
    for key in shape:
        if key.endswith("!") and key.removesuffix("!") not in value:
            raise UserError(f"{join(where, key.removesuffix('!'))} is missing")


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, string) of every string in nested dictionaries and lists."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner, join(where, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from texts(inner, f"{where}[{index}]")


def join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def main(paths: list[str]) -> int:
    if not paths or paths[0].startswith("-"):
        print(__doc__)
        return 0 if paths in (["-h"], ["--help"]) else 2
    logging.getLogger("ray").setLevel(logging.WARNING)  # else Ray prints which defaults it fills in
    status = 0
    for path in paths:
        try:
            left = check_file(path)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
            continue
        print(f"{path}: ok" + (", once these are filled in:" if left else ""))
        for line in left:
            print(f"  {line}")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
