"""What a run leaves: folders, figures, numbers.

`run_folder` writes whole files or none; `drawing` and `sheets` hold what figures share.
"""
