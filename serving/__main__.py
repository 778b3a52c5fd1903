"""``python -m pyattn_serving``."""

import sys

from .cli import main

sys.exit(main())
