"""Run the command line: `python -m diffprune`."""

import sys

from diffprune.cli.main import main

sys.exit(main())
