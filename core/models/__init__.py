"""Networks: by name, file or checkpoint, with weights, preprocessing and class names.

`load` makes a `Model`. `trained` finds the network and its weights: `zoo` knows architectures by
name, `files` reads files from strangers. `outputs`, `heads` and `behaviour` determine what the
network returns, what it means and how it behaves. `layers` finds layers, watches and changes their
outputs, `variants` makes optimised, frozen and randomised networks.
"""
