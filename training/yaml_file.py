"""Parses YAML that users write."""

import re
from collections import Counter
from typing import Any, Final

import yaml

# Numbers that YAML 1.1 reads to another base than a person: 010 is 8, and 1:30 is 90.
OTHER_BASE: Final = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+(\.[0-9_]*)?)")


class StrictLoader(yaml.SafeLoader):
    """A loader that refuses what it would lose or change in silence.

    A key that is there twice would lose its first value, and a number of `OTHER_BASE` become
    another one.
    """

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"the fields that begin in line {line} have {key} twice")
        return node

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag.endswith((":int", ":float")) and OTHER_BASE.fullmatch(node.value):
            line = node.start_mark.line + 1
            raise ValueError(
                f"{node.value} in line {line} is another number to YAML: write a number without 0 "
                "in front and without colons, or put a text into quotes"
            )
        return node


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text; raises `ValueError` with the reason in one line."""
    try:
        return yaml.load(text, StrictLoader)
    except Exception as error:  # Converting a value, such as month 13, may raise anything.
        raise ValueError(" ".join(str(error).split())) from error
