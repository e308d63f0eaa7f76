"""Past predictions through the statistics that watch a service: the same report, offline."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from service.tail.monitor import Facts, Rules, TailMonitor
from service.tail.read import class_state, tail_state
from service.tail.replay import Prediction
from service.tail.state import ClassState, GroupState, Interval, TailState

# Predictions between two looks, as between two scrapes of a service.
LOOK: Final = 100
SHOWN: Final = 20


@dataclass(frozen=True)
class Report:
    """At the end of the predictions, and how many there had been when a class was first found.

    `classes` are those found silent or drifting by then, the strongest evidence first.
    """

    state: TailState
    classes: tuple[ClassState, ...]
    first_found: dict[str, int]
    delays: tuple[float, ...]


@dataclass
class _Time:
    """Goes with the predictions; where they have no time, it stands."""

    now: float = 0.0
    found: dict[str, int] = field(default_factory=dict)


def watch(facts: Facts, predictions: Iterable[Prediction], rules: Rules) -> Report:
    """Replay `predictions`, looking every `LOOK` of them."""
    time = _Time()
    monitor = TailMonitor(facts, rules, lambda: time.now)
    for number, one in enumerate(predictions, 1):
        time.now = time.now if one.time is None else one.time
        monitor.observe(one.label, one.confidence)
        if number % LOOK == 0:
            _note(monitor, time)
    _note(monitor, time)
    state = tail_state(monitor)
    return Report(
        state=state,
        classes=tuple(class_state(monitor, place) for place in _found(state)),
        first_found=time.found,
        delays=tuple(monitor.silence.delay().tolist()),
    )


def _note(monitor: TailMonitor, time: _Time) -> None:
    monitor.look()
    for place in np.flatnonzero(monitor.drift.found | monitor.silence.found).tolist():
        time.found.setdefault(monitor.facts.labels[place], monitor.predictions)


def _found(state: TailState) -> list[int]:
    """Silent classes first, then those that drift, by their evidence."""
    classes = state.classes
    places = np.flatnonzero(classes.silent | classes.found)
    order = np.lexsort((-classes.e_value[places], ~classes.silent[places]))
    listed: list[int] = places[order].tolist()
    return listed


def print_report(report: Report, console: Console) -> None:
    """Two tables and a sentence; `console` without markup, since labels are anybody's text."""
    console.print(_group_table(report.state.groups))
    if report.classes:
        console.print(_class_table(report))
    console.print(_summary(report))


def _group_table(groups: Iterable[GroupState]) -> Table:
    table = Table("group")
    for name in ("classes", "predicted", "expected", "share", "expected", "images", "confidence"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for one in groups:
        table.add_row(
            one.group,
            str(one.classes),
            f"{one.predicted:,}",
            f"{one.expected:,.1f}",
            _share(one.share, one.interval),
            _share(one.expected_share, one.expected_interval),
            _share(one.prevalence, one.prevalence_interval),
            "" if one.confidence is None else f"{one.confidence.median:.0%}",
            one.verdict,
        )
    return table


def _class_table(report: Report) -> Table:
    table = Table("class", "group", "verdict")
    for name in ("predicted", "expected", "ratio", "log10 e", "found after"):
        table.add_column(name, justify="right")
    for one in report.classes[:SHOWN]:
        evidence = max(one.e_value, one.silence_e_value or 0.0)
        table.add_row(
            one.label,
            one.group,
            one.verdict,
            f"{one.predicted:,}",
            f"{one.expected:,.1f}",
            f"{one.ratio:.2f}",
            f"{math.log10(evidence):.1f}",
            f"{report.first_found[one.label]:,}",
        )
    return table


def _summary(report: Report) -> str:
    state, seen = report.state, [one for one in report.delays if math.isfinite(one)]
    text = (
        f"{state.predictions:,} predictions against the reference {state.reference}: "
        f"silent few-shot classes: {state.silent}; drifting classes: {state.drifting}."
    )
    if len(report.classes) > SHOWN:
        text += f" The {SHOWN} with the strongest evidence are listed."
    if seen:
        text += (
            f" The loss of any of {len(seen)} few-shot classes (of {len(report.delays)}) from now "
            f"on would be found within {max(seen):,.0f} predictions."
        )
    return text


def _share(value: float, interval: Interval) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.1%} ({interval.low:.1%} to {interval.high:.1%})"
