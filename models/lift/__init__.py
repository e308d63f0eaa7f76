"""The model in torch: image tower, tuners, classification head and merging.

`backbone` loads a pretrained model, `convert` turns its image tower into a `Tower`, `tuners` add
the trained modules, `head` classifies, `model` puts them together and folds the tuners into plain
weights, and `onnx_export` writes the result.
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
    """Import torchvision next to a torch that was built without CUDA.

    A CUDA build of torchvision cannot be imported there, because its library of operators does not
    load. open_clip and timm need only its transforms, so its operators are declared first. On a
    matching installation this is just the import.
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


# This must run before a module below imports timm or open_clip, which import torchvision.
import_torchvision()
