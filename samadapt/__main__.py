"""``python -m samadapt``, where the ``samadapt`` command is not on the path."""

import sys

from samadapt.cli import main

if __name__ == "__main__":
    sys.exit(main())
