"""Shortens the durations in Prometheus rules, so that alerts can be tested within seconds."""

import re
from typing import Any

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
PART = re.compile(r"(\d+)(ms|[smhdw])")
# Durations in ranges and offsets of an expression. Those in the names of series are left alone.
IN_EXPRESSION = re.compile(r"(\[|\boffset )((?:\d+(?:ms|[smhdw]))+)")


def compressed(rules: dict[str, Any], factor: float, least: float) -> dict[str, Any]:
    """Return the content of a rule file with every duration divided by `factor`.

    No duration becomes shorter than `least` seconds: several scrapes have to fit into it.
    """

    def shorter(duration: str) -> str:
        return f"{max(1000 * least, 1000 * seconds(duration) / factor):.0f}ms"

    def compressed_rule(rule: dict[str, Any]) -> dict[str, Any]:
        expression = IN_EXPRESSION.sub(lambda match: match[1] + shorter(match[2]), rule["expr"])
        durations = {key: shorter(rule[key]) for key in ("for", "keep_firing_for") if key in rule}
        return rule | {"expr": expression} | durations

    return {
        "groups": [
            {"name": group["name"], "rules": [compressed_rule(rule) for rule in group["rules"]]}
            for group in rules["groups"]
        ]
    }


def seconds(duration: str) -> float:
    """Return the length of a duration as Prometheus writes it: 1h30m gives 5,400."""
    return sum(int(number) * UNITS[unit] for number, unit in PART.findall(duration))
