"""`python -m cnnviz.cli`."""

from cnnviz.cli.main import main

main()
