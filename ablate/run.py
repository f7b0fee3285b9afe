"""`python -m ablate.run`."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    from ablate.cli.run import main

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
