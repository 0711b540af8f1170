"""How alpha and beta of an edit were chosen, read from the table of the pairs that were tried."""

from __future__ import annotations

from dataclasses import dataclass

from styleclip.tasks.artifacts import DamagedArtifactError, read_provenance, read_table


@dataclass(frozen=True)
class Choice:
    """The pairs that were tried for an edit; the last one was chosen.

    Attributes:
        target: What the edit aims at.
        wanted: The effect that was sought, a probability.
        reason: Why the chosen pair was chosen.
        alphas: Strengths.
        betas: Thresholds, None where the number of channels was given.
        effects: Mean probability of the target prompt against the neutral one.
        movements: Mean movement of everything else.
    """

    target: str
    wanted: float
    reason: str
    alphas: list[float]
    betas: list[float | None]
    effects: list[float]
    movements: list[float]


def read_choice(uri: str) -> Choice:
    """Read a choice.

    Raises:
        DamagedArtifactError: If it is no table of a choice, or is empty.
        StorageError: If it cannot be read.
    """
    made = read_provenance(uri)
    table = read_table(uri, columns=["alpha", "beta", "effect", "movement"])
    about = made.parameters

    if made.kind != "choice" or not len(table):
        raise DamagedArtifactError(
            f"{uri} is a table of kind {made.kind!r} with {len(table)} rows, not the pairs tried for an "
            "edit; give a choice.parquet"
        )

    alphas, betas, effects, movements = (table[name].to_pylist() for name in table.column_names)
    return Choice(about["target"], about["effect"], about["reason"], alphas, betas, effects, movements)
