"""Calibration: how logits become answers, fitted on photos that the model has not seen."""
