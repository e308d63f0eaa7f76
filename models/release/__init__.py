"""Releasing a bundle: compare it with the one before, pack it for the way, sign it.

Nothing here needs torch.
"""
