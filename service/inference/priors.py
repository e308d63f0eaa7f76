"""Priors by name: the reserved ones, and those that a file gives."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import Prior, log_prior, log_shares, prior_of
from taillift.models.errors import UserError, did_you_mean, nearest
from taillift.models.names import index_of_name, indices_by_name, refuse_two_forms
from taillift.service.problems import MalformedError

# The prior that follows the groups' shares.
LIVE: Final = "live"


class JsonObject:
    """A JSON object whose names may repeat."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        self.pairs = pairs


def read_priors(
    path: Path | None, manifest: Manifest, reserved: Collection[str] = tuple(Prior)
) -> Mapping[str, Doubles]:
    """Return the log shares [C] of each prior: `uniform`, `train` and those of the file at `path`.

    The JSON file holds {name: {label: weight}}. Every class has a weight, in any order and with any
    total. A weight of 0 says that a class cannot occur. Raises `UserError`, also for a prior whose
    name is `reserved`.
    """
    priors = {prior.value: log_prior(prior, manifest.counts) for prior in Prior}
    for name, weights in read_objects(path).pairs if path else []:
        where = f"prior {name!r} in {path}"
        if name in reserved:
            raise UserError(f"{where}: the name is taken (the service has it); choose another")
        if name in priors:
            raise UserError(f"{where} appears twice: remove or rename one")
        if not isinstance(weights, JsonObject):
            raise UserError(f"{where} must be an object of the form {{label: weight}}")
        by_label = read_weights(where, weights, manifest.labels)
        priors[name] = log_shares([by_label[label] for label in manifest.labels])
    return MappingProxyType(priors)


def known_prior(
    name: str, priors: Mapping[str, Doubles], names: Sequence[str], manifest: Manifest
) -> Doubles:
    """Return the log prior [C] with this name, or of these weights of the groups.

    Raises `MalformedError`, with the nearest of all `names` that a request may use.
    """
    if name in priors:
        return priors[name]
    if ":" in name:
        try:
            return prior_of(name, manifest)
        except UserError as error:
            raise MalformedError(f"query parameter `prior`: {error}") from None
    if name == LIVE:
        raise MalformedError(
            "query parameter `prior`: `live` is not known; the service has it if it is started "
            "with the setting live_prior"
        )
    near = nearest(name, names)
    hint = f"did you mean `{near}`?" if near else f"the known priors are {', '.join(names)}"
    raise MalformedError(f"query parameter `prior`: `{name[:80]}` is not known; {hint}")


def read_objects(path: Path) -> JsonObject:
    """Read a JSON file that holds an object; raises `UserError`."""
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=JsonObject)
    except OSError as error:
        raise UserError(f"the priors' file {path} cannot be read: {error.strerror}") from None
    # RecursionError: too many nested brackets.
    except (ValueError, RecursionError) as error:
        raise UserError(f"the priors' file {path} is not JSON: {error}") from None
    if not isinstance(content, JsonObject):
        raise UserError(f"the priors' file {path} must hold {{name: {{label: weight}}}}")
    return content


def read_weights(where: str, weights: JsonObject, labels: list[str]) -> dict[str, float]:
    """Return the weight of each label; raises `UserError`, which begins with `where`."""
    indices = indices_by_name(labels)
    refuse_two_forms([label for label, _ in weights.pairs], where)
    by_label: dict[str, float] = {}
    for name, weight in weights.pairs:
        if (index := index_of_name(name, indices)) is None:
            hint = did_you_mean(name, labels)
            raise UserError(f"{where}: the bundle has no class {name!r}{hint}")
        label = labels[index]
        if label in by_label:
            raise UserError(f"{where}: class {label!r} appears twice; remove one")
        by_label[label] = read_weight(where, label, weight)
    if missing := [label for label in labels if label not in by_label]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{where}: class {missing[0]!r}{others} missing; every class needs a weight "
            "(0: cannot occur)"
        )
    if not any(by_label.values()):
        raise UserError(f"{where}: every weight is 0; at least one class must be possible")
    return by_label


def read_weight(where: str, label: str, weight: object) -> float:
    """Return a class's weight as a number; raises `UserError`, which begins with `where`."""
    # A boolean is an integer in Python, but not in JSON.
    if isinstance(weight, int | float) and not isinstance(weight, bool):
        try:
            number = float(weight)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number >= 0:
            return number
    shown = weight if isinstance(weight, int | float | str | None) else "an object or a list"
    raise UserError(
        f"{where}: class {label!r} has weight {str(shown)[:40]!r}; it must be a finite number, "
        "0 or more"
    )
