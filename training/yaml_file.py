"""Parses YAML that users write."""

import yaml


def parse_yaml(text: str) -> object:
    """Return the value of a YAML text; raises `ValueError` with the reason in one line."""
    try:
        return yaml.safe_load(text)
    except Exception as error:  # Converting a value, such as month 13, may raise anything.
        raise ValueError(" ".join(str(error).split())) from error
