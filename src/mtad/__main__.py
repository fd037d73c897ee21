"""`python -m mtad`, the same as the `mtad` command."""

import sys

from mtad.cli.main import main

sys.exit(main())
