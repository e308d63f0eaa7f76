"""Prometheus rules for a time that runs faster than ours."""

import re
from typing import Any

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
PART = re.compile(r"(\d+)(ms|[smhdw])")
# A range or an offset inside an expression; record names keep theirs.
IN_EXPRESSION = re.compile(r"(\[|\boffset )((?:\d+(?:ms|[smhdw]))+)")


def compressed(rules: dict[str, Any], factor: float, least: float) -> dict[str, Any]:
    """The content of a rule file with every duration divided by `factor`.

    None gets shorter than `least` seconds, in which a scrape has to fit several times.
    """

    def shorter(duration: str) -> str:
        return f"{max(1000 * least, 1000 * seconds(duration) / factor):.0f}ms"

    def rule(one: dict[str, Any]) -> dict[str, Any]:
        expression = IN_EXPRESSION.sub(lambda at: at[1] + shorter(at[2]), one["expr"])
        durations = {key: shorter(one[key]) for key in ("for", "keep_firing_for") if key in one}
        return one | {"expr": expression} | durations

    return {
        "groups": [
            {"name": group["name"], "rules": [rule(one) for one in group["rules"]]}
            for group in rules["groups"]
        ]
    }


def seconds(duration: str) -> float:
    """Of a duration as Prometheus writes it: 1h30m is 5,400."""
    return sum(int(number) * UNITS[unit] for number, unit in PART.findall(duration))
