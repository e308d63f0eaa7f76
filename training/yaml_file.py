"""Parses YAML that users write."""

from collections import Counter
from typing import Any

import yaml


class DistinctKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key that is there twice: the first value would be lost in silence."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
                line = node.start_mark.line + 1
                raise ValueError(f"the fields that begin in line {line} have {key} twice")
        return node


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text; raises `ValueError` with the reason in one line."""
    try:
        return yaml.load(text, DistinctKeyLoader)
    except Exception as error:  # Converting a value, such as month 13, may raise anything.
        raise ValueError(" ".join(str(error).split())) from error
