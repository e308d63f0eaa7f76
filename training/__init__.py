"""Turns photos into a bundle.

`data` finds and reads the photos, and `recipe` says what is trained and how. `train` tells a
training run from start to end; `fit` holds its parts. `evaluation` measures the result and
`calibration` makes its confidences right. `export` writes the bundle. `comparison` trains and
evaluates several recipes and says what heavy fine-tuning gains; `report` shows the results.
"""
