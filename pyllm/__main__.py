"""`python -m pyllm`: the same as the command `pyllm`."""

from __future__ import annotations

import sys

from pyllm.cli import main

sys.exit(main())
