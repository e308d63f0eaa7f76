"""When an image needs no more views, and what is known of the cost."""

from collections.abc import Iterator, Mapping
from typing import Final

from taillift.models.bundle.ensemble import ExitRule, Loss
from taillift.models.bundle.manifest import Variant
from taillift.models.bundle.schema import Precision
from taillift.training.report.html import notes, number, paragraph, table

RULE: Final = (
    *("", "stops after (views: lead in logits)", "tolerance, points", "mean views"),
    *("other answers than five views', %", "certified"),
)
LOSS: Final = (
    *("", "", "photos", "lost by the labels, points", "standard error"),
    *("expected loss", "bound at 95 %"),
)


def section(variants: Mapping[Precision, Variant]) -> str:
    rules = {one: found.exit for one, found in variants.items() if found.exit}
    if not rules:
        return paragraph(
            "The bundle is not calibrated: there is no exit rule, and it cannot answer "
            "ensemble=adaptive."
        )
    first = next(iter(rules.values()))
    losses = [row for precision, rule in rules.items() for row in _losses(precision, rule)]
    return "".join(
        (
            notes({one: [verdict(rule)] for one, rule in rules.items()}, "verdict"),
            table(RULE, (_described(one, rule) for one, rule in rules.items()), words=2),
            table(LOSS, losses, words=2),
            paragraph(
                f"Fitted on {first.data}, {first.images:,} different photos. A loss is accuracy "
                "with five views less that of adaptive, in points; in a group it is the mean over "
                "classes. Expected: the loss by the labels, drawn to what the views themselves "
                "say, as far as photos are few. Bound: the loss is no more with 95 % confidence.",
                "note",
            ),
            notes({one: rule.notes for one, rule in rules.items()}),
        )
    )


def verdict(rule: ExitRule) -> str:
    """What may be relied on, in a sentence."""
    limit = f"{rule.tolerance:g} points of accuracy against five views, overall and in every group"
    if not rule.leads:
        return "adaptive saves nothing: every image takes all five views"
    if rule.certified:
        return f"certified: with 95 % confidence adaptive loses at most {limit}"
    losses = dict(_places(rule))
    worst = max(losses, key=lambda name: losses[name].bound)
    return (
        f"not certified: adaptive is expected to lose at most {limit}, but these photos only prove "
        f"a loss of at most {losses[worst].bound:.1f} ({worst})"
    )


def stages(rule: ExitRule) -> str:
    stops = [f"{views}: {lead:.2f}" for views, lead in zip(rule.stages, rule.leads, strict=False)]
    return ", ".join([*stops, f"{rule.stages[-1]}: always"])


def _described(precision: Precision, rule: ExitRule) -> list[str]:
    return [
        precision,
        stages(rule),
        f"{rule.tolerance:g}",
        number(rule.mean_views, 2),
        number(rule.disagreement),
        "yes" if rule.certified else "no",
    ]


def _losses(precision: Precision, rule: ExitRule) -> Iterator[list[str]]:
    for name, loss in _places(rule):
        figures = [number(one, 2) for one in (loss.estimate, loss.error, loss.expected)]
        yield [precision, name, f"{loss.photos:,}", *figures, number(loss.bound)]


def _places(rule: ExitRule) -> Iterator[tuple[str, Loss]]:
    yield "overall", rule.overall
    yield from rule.groups.items()
