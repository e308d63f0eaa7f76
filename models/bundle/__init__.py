"""A trained model on disk and at run time, without torch.

An image's bytes go through `images` (decoding, canvas, views), `session` (logits and features),
`ensemble` (one row for each image) and `predictor` (probabilities, decision and set of labels).
`classifier` does all of it in one object. `manifest` says everything about the model that is not a
weight.
"""

import os

# From 1.29 on, ONNX Runtime sends reports to its makers unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
