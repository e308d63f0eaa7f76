"""Check the manifests in docker/k8s: their fields, images and settings.

Usage: scripts/check_kubernetes.py [FOLDER]

Prints one line for each violation, and exits with 1 if there is any.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import SchemaNotFoundError
from pydantic import ValidationError

from taillift.service.settings import PREFIX, Settings

ROOT: Final = Path(__file__).parents[1]
KUSTOMIZE: Final = (str(Path(sys.executable).with_name("kubectl")), "kustomize")
# The oldest with image volumes that need no alpha feature, and the newest.
VERSIONS: Final = ("1.33", "1.37")
# Fields of KServe's kinds that are not fields of a pod.
NOT_A_POD: Final = {
    "annotations",
    "autoScaling",
    "maxReplicas",
    "minReplicas",
    "model",
    "protocolVersions",
    "supportedModelFormats",
}

Document = Mapping[str, Any]


class Located(NamedTuple):
    """A document of Kubernetes, and the file or folder that it comes from."""

    source: str
    content: Document

    def says(self, text: str) -> str:
        """Return a line about the document."""
        name = self.content.get("metadata", {}).get("name")
        return f"{self.source}: {self.content.get('kind')} {name}: {text}"


def documents(folder: Path) -> list[Located]:
    """Return all documents of the base, of each overlay, and of KServe's folder.

    Raises `subprocess.CalledProcessError` if kustomize refuses a folder.
    """
    sources = [folder / "base", *sorted((folder / "overlays").iterdir())]
    texts = {str(path.relative_to(folder)): built(path) for path in sources}
    texts |= {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted((folder / "kserve").iterdir())
    }
    return [
        Located(source, content)
        for source, text in texts.items()
        for content in yaml.safe_load_all(text)
        if content is not None
    ]


def built(folder: Path) -> str:
    """Return what kustomize makes of a folder."""
    command = [*KUSTOMIZE, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def violations(folder: Path) -> Iterator[str]:
    """Yield a line for each fault of the manifests."""
    kinds = yaml.safe_load((folder / "custom-kinds.yaml").read_text())
    reasons = yaml.safe_load((ROOT / "docker/images.yaml").read_text())["x-built-here"]
    try:
        located = documents(folder)
    except subprocess.CalledProcessError as error:
        yield f"{error.cmd[-1]}: {error.stderr.strip()}"
        return
    for document in located:
        faults = [
            *schema_faults(document.content, kinds),
            *image_faults(document.content, reasons),
            *setting_faults(document.content),
        ]
        yield from map(document.says, dict.fromkeys(faults))


def schema_faults(content: Document, kinds: Mapping[str, Document]) -> Iterator[str]:
    """Yield what the schemas of Kubernetes, or ours of another kind, find wrong."""
    try:
        for version in VERSIONS:
            kubernetes_validate.validate(content, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
    except SchemaNotFoundError:
        name = f"{content['apiVersion']} {content['kind']}"
        if name not in kinds:
            yield "the kind is in neither Kubernetes' schemas nor custom-kinds.yaml"
            return
        spec = dict(content["spec"])
        if "kserve" in name:
            spec, pods = without_pods(spec)
            for pod in pods:
                yield from schema_faults(pod, kinds)
        for fault in Draft202012Validator(kinds[name]).iter_errors(spec):
            yield f"spec.{'.'.join(map(str, fault.path))}: {fault.message}"


def without_pods(spec: dict[str, Any]) -> tuple[dict[str, Any], Iterator[Document]]:
    """Return the specification with its pod's fields under `pod`, and pods that have these fields.

    KServe mixes both in one object: a runtime has containers, and a service has none.
    """
    whole = spec.get("predictor", spec)
    own = {name: value for name, value in whole.items() if name in NOT_A_POD}
    fields = {name: value for name, value in whole.items() if name not in NOT_A_POD}
    pod = {"containers": [{"name": "kserve-container"}], **fields}
    changed = {**own, "pod": fields}
    pods = iter([{"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": pod}])
    return ({"predictor": changed} if "predictor" in spec else changed), pods


def image_faults(content: Document, reasons: Mapping[str, str]) -> Iterator[str]:
    """Yield the images that have no digest and no reason for that in docker/images.yaml."""
    for found in (*values(content, "image"), *values(content, "reference")):
        if isinstance(found, str) and "@sha256:" not in found and not reasons.get(found):
            yield f"image {found} has no digest, and docker/images.yaml gives no reason"
    for address in values(content, "storageUri"):
        image = str(address).removeprefix("oci://")
        if image != address and "@sha256:" not in image and not reasons.get(image):
            yield f"image {image} has no digest, and docker/images.yaml gives no reason"


def setting_faults(content: Document) -> Iterator[str]:
    """Yield the variables that are not settings, and values that a setting refuses."""
    given = {
        variable["name"]: variable.get("value")
        for variables in values(content, "env")
        for variable in variables
    }
    if content["kind"] == "ConfigMap":
        given |= content["data"]
    for variable, value in given.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable != f"{PREFIX}{name.upper()}" or name not in Settings.model_fields:
            yield f"{variable} is not a setting"
        elif value is not None:
            try:
                Settings(**{name: value})
            except ValidationError as error:
                yield f"{variable}={value}: {error.errors()[0]['msg']}"


def values(content: object, name: str) -> Iterator[Any]:
    """Yield the value of every field of this name, however deep it is."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == name:
                yield value
            yield from values(value, name)
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for item in content:
            yield from values(item, name)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docker/k8s"
    found = list(violations(folder))
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(bool(found))
