"""One transformer layer: residual branches around attention and FFN, with the norm's placement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from assemblies.config import Placement
from blocks import Positions

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
    """Self-attention, cross-attention where there is a context, and one FFN, each residual."""

    def __init__(self, attention: Residual, cross: Residual | None, ffn: Residual) -> None:
        super().__init__()
        self.attention, self.cross, self.ffn = attention, cross, ffn

    def forward(self, x: Tensor, positions: Positions, context: Tensor | None = None) -> Tensor:
        """Map [b n d] -> [b n d], looking at the context [b m c] where there is a cross branch."""
        x = self.attention(x, positions=positions)
        if self.cross is not None:
            assert context is not None, "a cross-attending layer needs a context"
            x = self.cross(x, context)
        return cast(Tensor, self.ffn(x))
