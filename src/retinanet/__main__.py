"""``python -m retinanet``, which is ``retinanet``."""

import sys

from retinanet.cli import main

sys.exit(main())
