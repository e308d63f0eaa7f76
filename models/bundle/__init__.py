"""A trained model on disk and at run time, without torch.

Bytes go through `images` (decode, canvas, views), `session` (logits), `ensemble` (one row of
logits an image) and `posterior` (probabilities); `classifier` is that path in one object, and
`manifest` says everything about the model that is not a weight.
"""
