"""Where labelled photos come from.

`source` finds out how a set is laid out and has it read: `folders`, `lists`, `table`, `shards` and
`cifar` each know one layout and return a `Listing`. A new layout is one such module and one line in
`source.KINDS`. `check` leaves out what cannot be decoded, `tail` cuts a set to a long tail and
`holdout` sets photos aside; `training.dataset` puts the pieces together.
"""
