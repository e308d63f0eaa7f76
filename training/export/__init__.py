"""The way from a checkpoint to a bundle: graphs, variants, their proof, and recalibration."""
