"""``python -m retinanet`` runs the command ``retinanet``."""

import sys

from retinanet.cli import main

sys.exit(main())
