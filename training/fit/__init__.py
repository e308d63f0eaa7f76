"""The parts of a training run, which `training.train` puts together.

`build` makes the model, `inputs` and `frozen_features` bring the photos to it, `optimisation` makes
a step, `progress` and `resume` let an interrupted run continue, `distributed` is the processes and
their precision, and `checkpoint` and `provenance` are what a run leaves.
"""
