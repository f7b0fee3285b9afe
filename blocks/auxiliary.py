"""Losses that a block asks for beside its output, such as an expert router's balance."""

from __future__ import annotations

from torch import Tensor, nn


def collect_auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Return and forget the losses that modules left in ``auxiliary_losses``, summed by name.

    A block that wants one sets ``self.auxiliary_losses = {name: scalar}`` in its forward while it
    trains, already weighted. Training adds them to its loss and logs them as ``auxiliary/NAME``.
    """
    totals: dict[str, Tensor] = {}
    for module in model.modules():
        found = module.__dict__.get("auxiliary_losses")
        if found:
            for name, value in found.items():
                totals[name] = totals[name] + value if name in totals else value
            module.__dict__["auxiliary_losses"] = {}
    return totals
