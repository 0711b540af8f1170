"""Conditions on columns, in SQL: a data base in a temporary folder, and what it may be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from styleclip.tasks.settings import SettingsError


def connected(folder: str) -> duckdb.DuckDBPyConnection:
    """Return a data base in a temporary folder, which takes no more memory than it needs."""
    config: dict[str, Any] = {
        "temp_directory": folder, "memory_limit": "1GB", "threads": 1, "autoinstall_known_extensions": False,
        "python_enable_replacements": False, "preserve_insertion_order": True,
    }  # fmt: skip
    return duckdb.connect(str(Path(folder) / "samples.duckdb"), config=config)


def keep_where(
    database: duckdb.DuckDBPyConnection, select: str, where: str, into: str, *, of: str = ""
) -> None:
    """Keep the rows for which somebody's condition is true as a table; nothing else is read from then on.

    Args:
        database: Holds the rows.
        select: What to keep, a SELECT without a condition.
        where: The condition.
        into: Name of the table.
        of: What the rows are of, for messages.

    Raises:
        SettingsError: If it is no condition, or names a column that there is not.
    """
    # whoever writes the condition gets the columns, and nothing else of this machine
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    try:
        statement = f"{select} WHERE (\n{where}\n)"
        (parsed,) = duckdb.extract_statements(statement)
        if parsed.type != duckdb.StatementType.SELECT:
            raise SettingsError(f"where {where!r} is no condition; write one such as width >= 512")
        database.execute(f"CREATE TABLE {into} AS {statement}")
    except (duckdb.Error, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        asked = f" of {of}" if of else ""
        raise SettingsError(f"where {where!r} cannot be asked{asked}: {reason}") from error
