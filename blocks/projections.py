"""Linear layers with the library's initialisation."""

from __future__ import annotations

from torch import nn


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer with weights of deviation 1/sqrt(inputs) and zero biases.

    That deviation keeps the size of activations independent of the width (arXiv 1502.01852 without
    the gain, since no rectifier follows most of our projections).
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
