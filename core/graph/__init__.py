"""A traced network whose operations' geometry is known.

`trace` makes the graph, `operations` determines how each node treats positions (`geometry`), and
`receptive_field` and `reach` follow that from units to pixels and back; `program` runs the graph
and `fold` makes a faster copy of it.
"""
