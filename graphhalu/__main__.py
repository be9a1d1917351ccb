"""``python -m graphhalu`` is the command ``graphhalu``."""

from graphhalu.cli.main import main

main()
