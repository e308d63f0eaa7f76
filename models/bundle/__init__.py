"""A trained model on disk and at run time, without torch.

Bytes go through `images` (decode, canvas, views), `session` (logits), `ensemble` (one row of
logits an image) and `posterior` (probabilities); `classifier` is that path in one object, and
`manifest` says everything about the model that is not a weight.
"""

import os

# From 1.29 on ONNX Runtime reports to its makers, unless it is told not to before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
