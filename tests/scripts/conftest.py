"""The scripts are no package: their folder is put on the path, as when one of them is called."""

from __future__ import annotations

import sys

from tests.conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
