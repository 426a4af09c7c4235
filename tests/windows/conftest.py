"""These tests need Wine, with Windows' Python set up by `make test-windows`; they are skipped elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
