"""Run samadapt as ``python -m samadapt``, for when the command is not on the path."""

import sys

from samadapt.cli import main

if __name__ == "__main__":
    sys.exit(main())
