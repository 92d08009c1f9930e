"""``python -m loadgen``."""

from loadgen.cli.main import main

main()
