"""Mutated requests, forms and images against a real service, and a verdict on each.

`seeds` are the requests that are mutated, `mutations` what is done to them, `verdict` sends them
and judges the answers, and `__main__` is the run: scripts/fuzz. What it found lies in `corpus`.
"""
