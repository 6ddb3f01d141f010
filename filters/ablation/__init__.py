"""Filters switched off, and what breaks.

`ablation` is the experiment, `evaluation` what it means; `replay` and `suffix` run only what an
ablation can change.
"""
