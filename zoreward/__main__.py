"""`python -m zoreward` is `zoreward`."""

import sys

from zoreward.cli import main

if __name__ == "__main__":
    sys.exit(main())
