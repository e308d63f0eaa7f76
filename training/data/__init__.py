"""Finds and reads labelled photos.

`readers.registry` recognises the layout of a set and has it read. Each module in `readers` knows
one layout and returns a `Listing`. `check` leaves out photos that cannot be decoded, `long_tail`
cuts a set to a long tail, and `dataset` puts these pieces together.
"""
