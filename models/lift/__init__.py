"""The model in torch: one canonical vision transformer, tuners, heads and merging.

`backbone` loads a pretrained model, `convert` brings its image tower into `tower`, `tuners` add
what is trained, `head` classifies, `model` is all of them, and `merge` folds it into plain weights.
"""

from taillift.models.lift.compat import import_torchvision

# Before anything below imports timm or open_clip, which import torchvision.
import_torchvision()
