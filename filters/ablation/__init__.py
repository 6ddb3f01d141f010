"""Filters switched off, and what breaks.

`ablation` is the experiment; `replay` (with `suffix` and `changed_channels`) runs only what an
ablation can change; `tally` or `measures` collect answers, `evaluation` and `sweep` evaluate them;
`results` has the records and files.
"""
