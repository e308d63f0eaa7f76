"""The model in torch: image tower, tuners, classification head and merging.

`backbone` loads a pretrained model, `convert` turns its image tower into a `Tower`, `tuners` add
the trained modules, `head` classifies, `model` puts them together, `merge` folds the tuners into
plain weights, and `onnx_export` writes the result.
"""

from taillift.models.lift.compat import import_torchvision

# This must run before a module below imports timm or open_clip, which import torchvision.
import_torchvision()
