"""YAML that a person wrote."""

import yaml


def parse_yaml(text: str) -> object:
    """The value that it says; raises `ValueError` with the reason in one line where it is none."""
    try:
        return yaml.safe_load(text)
    except Exception as error:  # Converting a value, such as month 13, may raise anything.
        raise ValueError(" ".join(str(error).split())) from error
