"""Ways to choose which ReLUs a network keeps, all through one interface (`base`), found by name (`registry`).

A new method is one file here with a function of the form `base.Method`, a line in `registry`, and a section of settings
in `linearize.config`.
"""
