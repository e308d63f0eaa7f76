"""Make `import torchvision` work next to a torch that was built without CUDA.

A CUDA build of torchvision cannot be imported next to a CPU build of torch, because its library of
operators does not load. open_clip and timm need only its transforms.
"""

import importlib
import sys
from typing import Final

import torch

# Both operators take the same arguments; torchvision registers shape functions for them on import.
SCHEMAS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# When a torch library is garbage-collected, its operators are removed: keep it.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> None:
    """Import torchvision, and declare its operators first if they are missing.

    On a matching installation this is just the import. Call it before timm or open_clip is
    imported.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _libraries.append(library)
        importlib.import_module("torchvision")
