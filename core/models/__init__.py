"""Networks: by name, file or checkpoint, with weights, preprocessing and class names.

`load` makes a `Model`; `architectures`, `factories`, `checkpoints`, `archives` and `published` know
the kinds of network and of weights; `layers` finds layers and borrows their outputs.
"""
