"""Artifacts: Parquet tables that say what made them, named by a hash of it, written once.

A fingerprint is a hash over a step's name and version, its parameters and the fingerprints of its
inputs. It names the artifact's folder: same inputs, same place. What lies there is complete, and is
never replaced by other content.

Another processor rounds differently, and the same step then writes other bytes. So where a second writer
comes to a table that is there, the first one stays, if both agree in all but their figures, and in those
within what rounding can do; see ``docs/reproducibility.md``.
"""

from __future__ import annotations

from styleclip.tasks.artifacts.recipe import ChangedInputError as ChangedInputError
from styleclip.tasks.artifacts.recipe import Provenance as Provenance
from styleclip.tasks.artifacts.recipe import Recipe as Recipe
from styleclip.tasks.artifacts.recipe import artifact_uri as artifact_uri
from styleclip.tasks.artifacts.recipe import fingerprint as fingerprint
from styleclip.tasks.artifacts.recipe import part_name as part_name
from styleclip.tasks.artifacts.tables import DamagedArtifactError as DamagedArtifactError
from styleclip.tasks.artifacts.tables import column_names as column_names
from styleclip.tasks.artifacts.tables import count as count
from styleclip.tasks.artifacts.tables import is_complete as is_complete
from styleclip.tasks.artifacts.tables import iter_batches as iter_batches
from styleclip.tasks.artifacts.tables import read_expected as read_expected
from styleclip.tasks.artifacts.tables import read_identified as read_identified
from styleclip.tasks.artifacts.tables import read_provenance as read_provenance
from styleclip.tasks.artifacts.tables import read_table as read_table
from styleclip.tasks.artifacts.tables import to_matrix as to_matrix
from styleclip.tasks.artifacts.tables import vector_column as vector_column
from styleclip.tasks.artifacts.tables import write_table as write_table
from styleclip.tasks.artifacts.tables import write_tables as write_tables
