"""`python -m apdcli` is `apd`."""

import sys

from apdcli.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
