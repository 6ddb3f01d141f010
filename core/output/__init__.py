"""Results of a run: folder, journal, records, figures.

`run_folder` writes whole files or none, `journal` lets runs resume and join, `record` describes
results once; `style`, `drawing`, `panels` and `sheets` are shared by figures.
"""
