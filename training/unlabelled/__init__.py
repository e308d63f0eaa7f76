"""Training with unlabelled photos next to labelled ones.

`weak_strong` cuts two views of each unlabelled photo, `acceptance` says which of the model's
guesses on the weak ones become pseudo-labels, and `teacher` teaches them on the strong ones.
"""
