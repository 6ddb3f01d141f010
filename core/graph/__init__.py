"""A traced network: operations that know where they look.

`trace` makes the graph, `operations` says of each node what it does with positions, and
`receptive_field` and `reach` follow that from pixels to units and back; `program` runs the graph.
"""
