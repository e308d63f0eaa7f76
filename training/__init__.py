"""Turns photos into a bundle.

From the top down: `train_cli` has the commands, `export` makes a bundle from a checkpoint, `report`
draws what was measured, `comparison` trains several recipes on the same photos, `calibration` fits
a model's confidence to photos that it has not seen, `train` tells a training run, `evaluation`
measures accuracy along the tail, `unlabelled` teaches photos without labels, `fit` holds the parts
of a run, `recipe` says what is trained and how, and `data` finds and reads the photos. Each room
imports only rooms below it.
"""

import os

# Threads that wait for each other in torch sleep. By default they spin, and next to another busy
# process they then take the cores from the threads that they wait for. OpenMP reads the variable
# when torch is loaded, which this package's modules do; what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
