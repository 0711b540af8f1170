"""Artifacts: Parquet tables that say what made them, named by a hash of it, written once.

A fingerprint is a hash over a step's name and version, its parameters and the fingerprints of its
inputs. It names the artifact's folder: same inputs, same place. What lies there is complete, and is
never replaced by other content.

Another processor rounds differently, and the same step then writes other bytes. So where a second writer
comes to a table that is there, the first one stays, if both agree in all but their figures, and in those
within what rounding can do; see ``docs/reproducibility.md``.
"""

from __future__ import annotations

from tasks.artifacts.recipe import ChangedInputError as ChangedInputError
from tasks.artifacts.recipe import Provenance as Provenance
from tasks.artifacts.recipe import Recipe as Recipe
from tasks.artifacts.recipe import artifact_uri as artifact_uri
from tasks.artifacts.recipe import fingerprint as fingerprint
from tasks.artifacts.recipe import part_name as part_name
from tasks.artifacts.tables import DamagedArtifactError as DamagedArtifactError
from tasks.artifacts.tables import column_names as column_names
from tasks.artifacts.tables import count as count
from tasks.artifacts.tables import is_complete as is_complete
from tasks.artifacts.tables import iter_batches as iter_batches
from tasks.artifacts.tables import read_expected as read_expected
from tasks.artifacts.tables import read_provenance as read_provenance
from tasks.artifacts.tables import read_table as read_table
from tasks.artifacts.tables import to_matrix as to_matrix
from tasks.artifacts.tables import vector_column as vector_column
from tasks.artifacts.tables import write_table as write_table
from tasks.artifacts.tables import write_tables as write_tables
