"""The random specs of the analysis are tests of the engines too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "analysis"))
