"""Priors by name: the reserved ones, and those that a file gives."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from taillift.models.bundle.arrays import Doubles
from taillift.models.bundle.manifest import Manifest
from taillift.models.bundle.posterior import Prior, log_prior, log_shares
from taillift.models.bundle.text import did_you_mean
from taillift.models.errors import UserError

Pairs = list[tuple[str, object]]


class _Object:
    """A JSON object whose names may repeat."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs


def read_priors(path: Path | None, manifest: Manifest) -> Mapping[str, Doubles]:
    """The log shares [C] of each prior: `uniform`, `train`, and those of the JSON file at `path`.

    The file holds {name: {label: weight}}: every class, in any order and of any total. Weight 0
    says that a class cannot occur. Raises `UserError`.
    """
    priors = {prior.value: log_prior(prior, manifest.counts) for prior in Prior}
    for name, weights in _read(path) if path else []:
        where = f"prior {name!r} in {path}"
        if name in set(Prior):
            raise UserError(f"{where}: the name is taken (the service has it); choose another")
        if name in priors:
            raise UserError(f"{where} stands there twice: remove or rename one")
        if not isinstance(weights, _Object):
            raise UserError(f"{where} must be an object of the form {{label: weight}}")
        priors[name] = _log_shares(where, weights.pairs, manifest.labels)
    return MappingProxyType(priors)


def _read(path: Path) -> Pairs:
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_Object)
    except OSError as error:
        raise UserError(f"the priors' file {path} cannot be read: {error.strerror}") from None
    # RecursionError: brackets within brackets without end.
    except (ValueError, RecursionError) as error:
        raise UserError(f"the priors' file {path} is not JSON: {error}") from None
    if not isinstance(found, _Object):
        raise UserError(f"the priors' file {path} must hold {{name: {{label: weight}}}}")
    return found.pairs


def _log_shares(where: str, pairs: Pairs, labels: Sequence[str]) -> Doubles:
    known = set(labels)
    weights: dict[str, float] = {}
    for label, weight in pairs:
        if label not in known:
            raise UserError(
                f"{where}: the bundle has no class {label!r}{did_you_mean(label, labels)}"
            )
        if label in weights:
            raise UserError(f"{where}: class {label!r} stands there twice; remove one")
        weights[label] = _weight(where, label, weight)
    if missing := [label for label in labels if label not in weights]:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{where}: class {missing[0]!r}{others} missing; every class needs a weight "
            "(0: cannot occur)"
        )
    if not any(weights.values()):
        raise UserError(f"{where}: every weight is 0; at least one class must be possible")
    return log_shares([weights[label] for label in labels])


def _weight(where: str, label: str, weight: object) -> float:
    # A boolean is an integer to Python, and none in JSON.
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
