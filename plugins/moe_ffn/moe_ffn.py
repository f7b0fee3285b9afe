"""A sparse mixture of experts as an FFN block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks import BlockSpec, Site, Unsupported, hookimpl, linear


class MixtureOfExperts(nn.Module):
    """Each token goes to its ``top_k`` best of several experts (arXiv 1701.06538, 2101.03961).

    An expert is a GEGLU. ``balance`` weighs the loss that keeps experts equally busy, which is
    reported as auxiliary/balance.
    Every expert looks at every token and unchosen answers are dropped: shapes stay fixed and no
    token's fate depends on another's, as a capacity would have it. So the *capacity* is that of a
    sparse mixture, and the compute is not saved; at equal parameters it costs what one FFN costs.
    """

    matrices = ("enter", "leave")  # decayed as the weights of linear layers are

    def __init__(
        self, site: Site, *, experts: int = 4, top_k: int = 2, balance: float = 0.01
    ) -> None:
        super().__init__()
        if site.hidden < 1:
            raise Unsupported(f"an FFN needs a hidden width of at least 1, got {site.hidden}")
        if not 1 <= top_k <= experts:
            raise Unsupported(f"top_k must be from 1 to the {experts} experts, got {top_k}")
        if not balance >= 0:
            raise Unsupported(f"balance must be at least 0, got {balance}")
        self.experts, self.top_k, self.balance = experts, top_k, balance
        self.router = linear(site.dim, experts, bias=False)
        self.enter = nn.Parameter(torch.empty(experts, site.dim, 2 * site.hidden))
        self.leave = nn.Parameter(torch.empty(experts, site.hidden, site.dim))
        nn.init.trunc_normal_(self.enter, std=site.dim**-0.5)
        nn.init.trunc_normal_(self.leave, std=site.hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map [b n d] -> [b n d]."""
        share = self.router(x).float().softmax(dim=-1)  # [b n k], k experts
        best = share.topk(self.top_k, dim=-1)
        chosen = torch.zeros_like(share).scatter(-1, best.indices, 1.0)
        weight = share * chosen / best.values.sum(dim=-1, keepdim=True)
        if self.training:
            busy = chosen.flatten(0, 1).mean(dim=0) / self.top_k  # of the tokens
            wanted = share.flatten(0, 1).mean(dim=0)  # of the router's probability
            loss = self.balance * self.experts * (busy * wanted).sum()
            self.auxiliary_losses = {"balance": loss}
        gate, value = torch.einsum("bnd,kdf->bnkf", x, self.enter.to(x.dtype)).chunk(2, dim=-1)
        inner = F.gelu(gate) * value * weight.unsqueeze(-1).to(x.dtype)
        return torch.einsum("bnkf,kfd->bnd", inner, self.leave.to(x.dtype))


@hookimpl
def register_blocks() -> list[BlockSpec]:
    """Offer the FFN."""
    return [
        BlockSpec(
            kind="ffn",
            name="moe",
            factory=MixtureOfExperts,
            summary="top-k mixture of GEGLU experts with a balance loss",
            source="arXiv:2101.03961",
            sweep={"top_k": (1,)},
            expected_failures={
                "option_acts(balance)": "it acts through the training loss only",
            },
        )
    ]
