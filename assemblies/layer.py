"""One transformer layer: residual branches around attention and FFN, with the norm's placement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from assemblies.config import Placement
from blocks import KeyValues, Positions

Make = Callable[[], nn.Module]

# Where the norm acts: on a branch's input, on its output, on the sum. Closed, since it is wiring.
PLACEMENT: dict[Placement, tuple[bool, bool, bool]] = {
    "pre": (True, False, False),  # arXiv 2002.04745
    "post": (False, False, True),  # arXiv 1706.03762
    "peri": (True, True, False),  # arXiv 2502.02732
    "reordered": (False, True, False),  # arXiv 2501.00656
}


def needs_final_norm(placement: Placement) -> bool:
    """Return whether a tower ends un-normalised: always, but where the sum itself is normed."""
    return not PLACEMENT[placement][2]


class Residual(nn.Module):
    """after(x + out(branch(in(x)))), where in, out and after are the norm or nothing."""

    def __init__(
        self, branch: nn.Module, norm: Callable[[str], nn.Module], placement: Placement, drop: float
    ) -> None:
        super().__init__()
        places = zip(("enter", "leave", "after"), PLACEMENT[placement], strict=True)
        norms = {name: norm(name) if used else nn.Identity() for name, used in places}
        self.norm_enter, self.norm_leave = norms["enter"], norms["leave"]
        self.norm_after = norms["after"]
        self.branch = branch
        self.dropout = nn.Dropout(drop)

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Map [b n d] -> [b n d]; further arguments go to the branch."""
        y = self.norm_leave(self.branch(self.norm_enter(x), *arguments, **named))
        return cast(Tensor, self.norm_after(x + self.dropout(y)))


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a context, and an FFN, each residual.

    ``between`` is an FFN between the two attentions, where there is one.
    """

    def __init__(
        self,
        attention: Residual,
        cross: Residual | None,
        ffn: Residual,
        *,
        between: Residual | None = None,
        context_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.between, self.cross, self.ffn = attention, between, cross, ffn
        self.context_norm = context_norm or nn.Identity()

    def forward(
        self,
        x: Tensor,
        positions: Positions,
        context: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Map [b n d] -> [b n d], looking at the context [b m c] where there is a cross branch.

        With a cache, x are the tokens that follow the ones in it.
        """
        own, other = ({}, {}) if cache is None else ({"cache": cache.own}, {"cache": cache.context})
        x = self.attention(x, positions=positions, **own)
        if self.between is not None:
            x = self.between(x)
        if self.cross is not None:
            assert context is not None, "a cross-attending layer needs a context"
            # The norm of a context whose keys are cached already would be for nothing.
            seen = context if cache and len(cache.context) else self.context_norm(context)
            x = self.cross(x, seen, **other)
        return cast(Tensor, self.ffn(x))


class LayerCache:
    """What a layer remembers while decoding: its own keys and values, and the context's."""

    def __init__(self) -> None:
        self.own, self.context = KeyValues(), KeyValues()
