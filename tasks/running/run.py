"""One run of the pipeline as one value: which networks it uses, where its artifacts lie, what it computes on.

A flow begins a run (``styleclip.flows.run.begin``), every step and task takes it. It holds names and hashes,
never a network: those are loaded where a task asks for them, once per process, and are compared with the
hash that names the run's artifacts. So weights that were replaced under the same URI while a run was waiting
for its Retry are refused, instead of being filed under the name of the old ones.
"""

from __future__ import annotations

from typing import cast

from pydantic import BaseModel, ConfigDict, field_validator

from styleclip.tasks.running.caching import unit_of_work
from styleclip.tasks.running.networks import Network, Wanted, current, load
from styleclip.tasks.settings import Judges, Models
from styleclip_core.models.clip import ClipModel
from styleclip_core.models.encoder import Encoder
from styleclip_core.models.identity import CompactIdentity, IdentityNetwork
from styleclip_core.models.lpips import PerceptualDistance
from styleclip_core.models.psp import PspEncoder
from styleclip_core.models.stylegan2 import Generator


class Networks(BaseModel):
    """URIs of the networks of a run; empty where there is none."""

    model_config = ConfigDict(frozen=True)

    generator: str = ""
    clip: str = ""
    encoder: str = ""
    identity: str = ""
    perceptual: str = ""

    @field_validator("*", mode="before")
    @classmethod
    def _absent(cls, uri: str | None) -> str:
        return uri or ""

    @classmethod
    def of(cls, chosen: Models | Judges) -> Networks:
        """Return the networks that somebody has chosen in a form."""
        return cls(**chosen.model_dump())

    def without_clip(self) -> Networks:
        """Return these networks for work that no prompt takes part in."""
        return self.model_copy(update={"clip": ""})


class ModelHashes(BaseModel):
    """Content hashes of the networks; one that is not used has none."""

    model_config = ConfigDict(frozen=True)

    generator: str = ""
    clip: str = ""
    encoder: str = ""
    identity: str = ""
    perceptual: str = ""


class Run(BaseModel):
    """What all steps of a flow run share.

    Attributes:
        models: The networks.
        hashes: Their content hashes, which name what is made with them.
        workspace: URI of the folder for artifacts.
        out: URI of the prefix for results, for flows that leave some outside of the workspace.
        device: What tasks compute on, ``"cuda"`` or ``"cpu"``.
    """

    model_config = ConfigDict(frozen=True)

    models: Networks = Networks()
    hashes: ModelHashes = ModelHashes()
    workspace: str
    out: str = ""
    device: str = "cpu"

    # Each of these raises CheckpointError where there is no such network, and ChangedWeightsError where its
    # weights are no longer those that the run began with.

    @property
    def generator(self) -> Generator:
        """Return the generator."""
        return cast(Generator, self._network("generator"))

    @property
    def clip(self) -> ClipModel:
        """Return CLIP."""
        return cast(ClipModel, self._network("clip"))

    @property
    def encoder(self) -> Encoder | PspEncoder | None:
        """Return the encoder, if there is one."""
        return cast("Encoder | PspEncoder", self._network("encoder")) if self.models.encoder else None

    @property
    def identity(self) -> IdentityNetwork | CompactIdentity | None:
        """Return the identity network, if there is one."""
        found = self._network("identity") if self.models.identity else None
        return cast("IdentityNetwork | CompactIdentity | None", found)

    @property
    def perceptual(self) -> PerceptualDistance | None:
        """Return the perceptual distance, if there is one."""
        found = self._network("perceptual") if self.models.perceptual else None
        return cast(PerceptualDistance | None, found)

    def _network(self, kind: str) -> Network:
        expected = getattr(self.hashes, kind)
        return load(Wanted(kind, getattr(self.models, kind), self.device, expected))


@unit_of_work("identify-models")
def identify_models(chosen: Networks, device: str) -> ModelHashes:
    """Load the networks as they are now and return the hashes that artifacts are named by."""
    named = {kind: uri for kind, uri in chosen.model_dump().items() if uri}
    found = {kind: current(Wanted(kind, uri, device)).fingerprint for kind, uri in named.items()}
    return ModelHashes(**found)


@unit_of_work("is-multilingual")
def is_multilingual(run: Run) -> bool:
    """Return whether the CLIP of a run was trained on texts of many languages."""
    return bool(run.models.clip) and run.clip.multilingual


def run_here(chosen: Models | Judges | Networks, workspace: str = "", out: str = "") -> Run:
    """Return a run whose work is called in this process on the CPU, without a flow."""
    networks = chosen if isinstance(chosen, Networks) else Networks.of(chosen)
    hashes = identify_models.fn(networks, "cpu")
    return Run(models=networks, hashes=hashes, workspace=workspace, out=out)
