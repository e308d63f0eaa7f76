"""Thousands of good, bad and vanishing requests against a real service, and a verdict on each.

`photos` are images with known answers, `requests` what is done with them, `wire` does it, `judge`
compares, `process` is the service, and `__main__` the run: scripts/chaos.
"""
