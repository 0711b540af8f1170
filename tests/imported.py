"""What forked commands find imported (``tests.forked``).

No import of these starts a thread, which no fork would have. Prefect and what is ours read the environment
when they are imported, so each command does that itself.
"""

from __future__ import annotations

import importlib

for _name in ("torch", "clip", "pandas", "pyarrow.parquet", "s3fs", "docket", "fastapi", "alembic"):
    importlib.import_module(_name)
