"""How a model is made: photos in, a bundle out.

`dataset` is a set of photos, which `data` finds and reads, `inputs` brings them to the tower,
`recipe` says what is trained and how, `fit` trains it, `checkpoint` keeps it, `evaluation` measures
it, `export` makes the bundle, and `compare` does so for several recipes side by side.
"""
