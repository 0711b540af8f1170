"""Ranger, the optimizer that the published mappers were trained with: RAdam, centred gradients, Lookahead.

The published code calls functions that torch has since removed. Here the rectified moments are torch's own
RAdam, which takes the same steps; around them stand the two things that make it Ranger.

    gradients   of a weight matrix lose their mean over all axes but the first (Yong et al. 2020, eq. 1)
    every k     steps the slow weights move towards the fast ones, and the fast ones go there
                (Zhang et al. 2019, algorithm 1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

EVERY, TOWARDS = 6, 0.5  # Lookahead's k and alpha, as published
BETAS, EPS = (0.95, 0.999), 1e-5


class Ranger(torch.optim.RAdam):
    """RAdam with centred gradients and Lookahead, at the published settings.

    The slow weights lie in ``state`` beside the moments, so a state dict holds all that a resumed training
    needs.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        """Prepare to change ``parameters`` by steps of ``lr``."""
        super().__init__(parameters, lr=lr, betas=BETAS, eps=EPS)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - torch's signature
        """Take a step along the gradients, which are centred in place."""
        moved = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        for each in moved:
            if each.ndim > 1:
                each.grad -= each.grad.mean(dim=tuple(range(1, each.ndim)), keepdim=True)

        # slow weights begin where the fast ones do; RAdam makes its own state only where there is none yet
        first = {each: each.clone() for each in moved if not self.state[each]}
        result = super().step(closure)
        for each, slow in first.items():
            self.state[each]["slow"] = slow

        for each in moved:
            state = self.state[each]
            if int(state["step"]) % EVERY == 0:
                state["slow"] += TOWARDS * (each - state["slow"])
                each.copy_(state["slow"])
        return result
