"""`python -m mmmask`, and `torchrun -m mmmask` for several processes."""

import sys

from mmmask.cli import main

sys.exit(main())
