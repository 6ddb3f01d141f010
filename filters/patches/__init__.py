"""What drives each filter most.

`plan` says which filters, `scan` passes over the data once, keeping the `top_k`, and `max_patches`
cuts the patches out.
"""
