"""`python -m hkdpipe` is the command `hkdpipe`."""

import sys

from hkdpipe.pipeline.cli import main

sys.exit(main())
