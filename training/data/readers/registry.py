"""How a set is laid out, found out by looking at it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from taillift.models.errors import UserError
from taillift.training.data.cache import SAMPLE_NAMES, unpack_sample
from taillift.training.data.readers.cifar import is_cifar, read_cifar
from taillift.training.data.readers.csv_table import is_table, read_table
from taillift.training.data.readers.folders import is_folders, read_folders
from taillift.training.data.readers.listing import Listing
from taillift.training.data.readers.lists import (
    DESCRIPTION,
    is_description,
    is_lists,
    read_description,
    read_lists,
)
from taillift.training.data.readers.shards import is_shards, read_shards


@dataclass(frozen=True)
class Kind:
    """A layout: what it looks like to a reader, whether a source has it, and what reads it."""

    looks: str
    fits: Callable[[Path], bool]
    read: Callable[[Path], Listing]


KINDS: Final = (
    Kind("class folders (train/CLASS/*.jpg)", is_folders, read_folders),
    Kind("list files (train.txt, classnames.txt)", is_lists, read_lists),
    Kind(f"a description of lists ({DESCRIPTION})", is_description, read_description),
    Kind("a CSV file with the columns path and label", is_table, read_table),
    Kind("WebDataset shards (train-*.tar)", is_shards, read_shards),
    Kind("CIFAR-100's files (cifar-100-python, .tar.gz)", is_cifar, read_cifar),
)


def read_source(source: str) -> Listing:
    """List what `source` holds: a path in one of the layouts of `KINDS`, or a sample set's name.

    A folder with a `dataset.yaml` is read as that says. Raises `UserError` where the source has no
    such layout or several, and what the layout's own reader raises.
    """
    path = Path(source)
    if (path / DESCRIPTION).is_file():
        path = path / DESCRIPTION
    kinds = [kind for kind in KINDS if kind.fits(path)]
    if not kinds and source in SAMPLE_NAMES:
        return read_folders(unpack_sample(source))
    if not kinds:
        raise UserError(_unknown(path))
    if len(kinds) > 1:
        raise UserError(
            f"{path} holds {kinds[0].looks} and {kinds[1].looks}: keep one, or say in "
            f"{path / DESCRIPTION} which lists are meant"
        )
    try:
        return kinds[0].read(path)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({error.strerror})") from error


def _unknown(path: Path) -> str:
    samples = ", ".join(SAMPLE_NAMES)
    if not path.exists():
        return f"{path} does not exist, and is no sample set either ({samples})"
    if path.is_dir() and (tables := sorted(path.glob("*.csv"))):
        return f"{path} is a folder: name the CSV file itself, like {tables[0]}"
    looks = "; ".join(kind.looks for kind in KINDS)
    return f"{path} is no set of photos: give one of {looks}; or a sample set ({samples})"
