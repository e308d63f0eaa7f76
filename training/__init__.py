"""How a model is made: photos in, a bundle out.

`dataset` is a set of photos, which `data` finds and reads, `inputs` brings them to the tower,
`recipe` says what is trained and how, `fit` trains it, `checkpoint` keeps it, `evaluation` measures
it, and `export` makes the bundle. `compare` trains and measures several recipes, each an `outcome`;
`results` are their rows, `verdict` is what they say of heavy fine-tuning, `report` shows it all.
"""
