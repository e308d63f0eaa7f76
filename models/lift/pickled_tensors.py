"""The tensors of a file that torch has pickled, read without running anything that it names.

A pickle tells its reader which functions to call. `TensorUnpickler` calls none of them: tensors
become a `StoredTensor`, which says where the numbers are, and every other object becomes a
`StandIn` that does nothing. So a TorchScript archive and a training checkpoint with options,
optimisers or NumPy scalars are read in the same way, and their keys are known before their numbers.
"""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

# The names of storages in `torch` whose dtype does not follow from torch.Tensor's own attributes.
DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class Storage:
    """A run of numbers in an archive, by its key."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet; `offset` and `stride` count numbers of its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class StandIn:
    """An object whose class is only known by name; it takes any call and does nothing."""

    CLASS: ClassVar[str] = "an object"

    def __new__(cls, *_arguments: Any, **_options: Any) -> "StandIn":
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self.fields: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.fields = state

    def __call__(self, *_arguments: Any, **_options: Any) -> "StandIn":
        return StandIn()

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item, as `append` and `extend` do."""

    def append(self, _item: Any) -> None: ...

    def extend(self, _items: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)

    def tensors(self) -> dict[str, Any]:
        """Return the tensors of a pickled module and its parts, by their names in a state dict.

        A TorchScript module has tensors and parts as attributes, an eager one in three tables.
        """
        if "_modules" in self.fields:
            tables = [self.fields.get(key) for key in ("_parameters", "_buffers", "_modules")]
            members = {k: v for table in tables if table for k, v in table.items()}
        else:
            members = self.fields
        found: dict[str, Any] = {}
        for name, member in members.items():
            if isinstance(member, StoredTensor):
                found[name] = member
            elif isinstance(member, StandIn):
                found |= {f"{name}.{key}": inner for key, inner in member.tensors().items()}
        return found


class TensorUnpickler(pickle.Unpickler):
    """Reads a pickle of torch, and looks nothing up but the functions that make tensors."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor":
                return rebuild_tensor
            case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state":
                return rebuild_parameter
            case "torch", _ if name in DTYPES:
                return DTYPES[name]
        return type("StandIn", (StandIn,), {"CLASS": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), *_):
                return Storage(key, dtype)
        return StandIn()


def rebuild_tensor(
    storage: Any, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> StoredTensor | StandIn:
    """Return a tensor of the archive, which has only been located."""
    if isinstance(storage, Storage):
        return StoredTensor(storage, offset, tuple(shape), tuple(stride))
    return StandIn()


def rebuild_parameter(tensor: Any, *_: Any) -> Any:
    """Return the tensor of a parameter."""
    return tensor


class TensorArchive:
    """A zip archive of torch: pickled objects, and the numbers of each storage."""

    def __init__(self, path: Path) -> None:
        """Raise `zipfile.BadZipFile` or `KeyError` if it is another kind of zip archive."""
        self.path = path
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not pickles:
            raise KeyError("data.pkl")
        self.folder = pickles[0].partition("/")[0]
        self.is_torchscript = any(name.startswith(f"{self.folder}/code/") for name in names)

    def read(self) -> Any:
        """Return the pickled object, with a `StoredTensor` for each tensor."""
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.folder}/data.pkl") as file:
            return TensorUnpickler(file).load()

    def load(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Read the numbers of these tensors; those of one storage share its memory."""
        storages: dict[str, Tensor] = {}
        tensors = {}
        with zipfile.ZipFile(self.path) as archive:
            for name, one in stored.items():
                key, dtype = one.storage.key, one.storage.dtype
                if key not in storages:
                    numbers = bytearray(archive.read(f"{self.folder}/data/{key}"))
                    empty = torch.empty(0, dtype=dtype)
                    storages[key] = torch.frombuffer(numbers, dtype=dtype) if numbers else empty
                tensors[name] = storages[key].as_strided(one.shape, one.stride, one.offset)
        return tensors


def read_legacy(path: Path) -> Any:
    """Return what torch before 1.6 has pickled, with its own list of harmless classes and a few.

    Raises `pickle.UnpicklingError` if the file names another class.
    """
    scalar = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [
        argparse.Namespace,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    ]
    with torch.serialization.safe_globals(harmless):
        return torch.load(path, map_location="cpu", weights_only=True)


def find_tensors(tree: Any) -> dict[str, Any]:
    """Return the state dict in a checkpoint: tensors or `StoredTensor`s by name; empty if none.

    The averaged weights of a checkpoint are preferred, as timm does.
    """
    if isinstance(tree, StandIn):
        return tree.tensors()
    if not isinstance(tree, Mapping):
        return {}
    for wrapper in WRAPPERS:
        if found := find_tensors(tree.get(wrapper)):
            return found
    found = {
        key: tensor
        for key, tensor in tree.items()
        if isinstance(key, str) and isinstance(tensor, Tensor | StoredTensor)
    }
    if not found:
        inner = [one for one in map(find_tensors, tree.values()) if one]
        found = inner[0] if len(inner) == 1 else {}
    return found


WRAPPERS: Final = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "teacher",
    "module",
)
