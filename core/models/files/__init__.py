"""Network files from strangers: recognised by content, and read without running their code.

`checkpoints` reads weights, `archives` and `exported` read networks, `child` tries in a child
process what has to be run.
"""
