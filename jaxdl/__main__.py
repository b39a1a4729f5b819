"""`python -m jaxdl`: language models at a terminal."""

import sys

from jaxdl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
