from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from assemblies import Embeddings, captioning_loss, contrastive_chance, contrastive_loss


def unit(rows: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 6, generator=generator), dim=-1)


def embeddings(rows: int = 4, bias: float | None = None) -> Embeddings:
    number = None if bias is None else torch.tensor(bias)
    return Embeddings(unit(rows, 1), unit(rows, 2), torch.tensor(5.0), number)


def infonce(e: Embeddings, groups: list[int]) -> float:
    total, n = 0.0, len(groups)
    for i in range(n):
        for a, b in ((e.image, e.text), (e.text, e.image)):
            candidates = [j for j in range(n) if j == i or groups[j] != groups[i]]
            scores = {j: float(e.scale * (a[i] @ b[j])) for j in candidates}
            total -= scores[i] - math.log(sum(math.exp(s) for s in scores.values()))
    return total / (2 * n)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 1, 0, 2]])
def test_contrastive_is_infonce_of_both_directions(groups: list[int]) -> None:
    got = contrastive_loss(embeddings(), torch.tensor(groups))
    assert float(got) == pytest.approx(infonce(embeddings(), groups), rel=1e-5)


def test_pairs_of_a_group_are_no_negatives() -> None:
    every = contrastive_loss(embeddings(), torch.arange(4))
    assert float(every) > float(contrastive_loss(embeddings(), torch.tensor([0, 1, 0, 2])))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 1, 0, 2]])
def test_sigmoid_is_the_sum_of_binary_losses(groups: list[int]) -> None:
    e, expected = embeddings(bias=-2.0), 0.0
    for i in range(4):
        for j in range(4):
            if i == j or groups[i] != groups[j]:
                score = float(e.scale * (e.image[i] @ e.text[j]) - 2.0)
                expected += math.log1p(math.exp(-score if i == j else score))
    got = contrastive_loss(e, torch.tensor(groups))
    assert float(got) == pytest.approx(expected / 4, rel=1e-5)


@pytest.mark.parametrize(("groups", "expected"), [
    ([0, 1, 2, 3], math.log(4)),
    ([0, 0, 1, 2], (2 * math.log(3) + 2 * math.log(4)) / 4),
    ([0, 0, 0], math.log(1)),
])  # fmt: skip
def test_chance_is_the_loss_of_equal_scores(groups: list[int], expected: float) -> None:
    numbers = torch.tensor(groups)
    assert contrastive_chance(numbers) == pytest.approx(expected)
    same = F.normalize(torch.ones(len(groups), 6), dim=-1)
    loss = contrastive_loss(Embeddings(same, same, torch.tensor(1.0)), numbers)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


TOKENS = torch.tensor([[1, 5, 7, 2, 0], [1, 9, 2, 0, 0]])
LENGTHS = torch.tensor([4, 3])


def test_captioning_counts_real_next_tokens_only() -> None:
    states, head = torch.randn(2, 5, 6), torch.randn(11, 6)
    terms = []
    for row, length in enumerate((4, 3)):
        for place in range(length - 1):
            logits = states[row, place] @ head.T
            terms.append(-logits.log_softmax(-1)[TOKENS[row, place + 1]])
    got = captioning_loss(states, head, TOKENS, LENGTHS)
    torch.testing.assert_close(got, torch.stack(terms).mean())
    noisy = states.clone()
    noisy[0, 3:], noisy[1, 2:] = 99.0, 99.0
    torch.testing.assert_close(captioning_loss(noisy, head, TOKENS, LENGTHS), got)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_once", [1, 22, 10**9])
def test_captioning_in_chunks_is_torchs_cross_entropy(smoothing: float, at_once: int) -> None:
    states = torch.randn(2, 5, 6, requires_grad=True)
    head = torch.randn(11, 6, requires_grad=True)
    real = torch.arange(1, 5) < LENGTHS[:, None]
    logits = states[:, :-1][real] @ head.T
    expected = F.cross_entropy(logits, TOKENS[:, 1:][real], label_smoothing=smoothing)
    wanted = torch.autograd.grad(3 * expected, (states, head))
    got = captioning_loss(states, head, TOKENS, LENGTHS, smoothing=smoothing, at_once=at_once)
    torch.testing.assert_close(got, expected)
    found = torch.autograd.grad(3 * got, (states, head))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_captioning_needs_no_gradient_to_be_measured() -> None:
    states, head = torch.randn(2, 5, 6), torch.randn(11, 6, requires_grad=True)
    with torch.no_grad():
        assert not captioning_loss(states, head, TOKENS, LENGTHS).requires_grad
    assert captioning_loss(states, head, TOKENS, LENGTHS).requires_grad


def largest_tensor(at_once: int) -> int:
    """Return the elements of the largest tensor that the loss and its gradient make."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            seen.extend(t.numel() for t in (out if isinstance(out, tuple) else (out,))
                        if isinstance(t, torch.Tensor))  # fmt: skip
            return out

    states = torch.randn(16, 33, 4, requires_grad=True)
    head = torch.randn(1000, 4, requires_grad=True)
    tokens, lengths = torch.randint(3, 1000, (16, 33)), torch.full((16,), 33)
    with Watch():
        captioning_loss(states, head, tokens, lengths, at_once=at_once).backward()
    return max(seen)


def test_captioning_never_holds_more_logits_than_allowed() -> None:
    assert largest_tensor(10**9) == 16 * 32 * 1000
    assert largest_tensor(20_000) == 20_000


def test_captioning_under_autocast_gives_gradients_of_the_parameters_dtype() -> None:
    states, head = torch.randn(2, 5, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    exact = captioning_loss(states, head, TOKENS, LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = captioning_loss(states, head, TOKENS, LENGTHS)
    loss.backward()
    torch.testing.assert_close(loss, exact, atol=0.05, rtol=0.05)
    assert states.grad is not None
    assert head.grad is not None
    assert states.grad.dtype == head.grad.dtype == torch.float32


def rank_losses(rank: int, world: int, address: str, bias: float | None, out: str) -> None:
    """Compute, on one of the ranks, its share of both losses and of the features' gradients."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    whole, groups = embeddings(6, bias), torch.tensor([0, 1, 0, 2, 3, 1])
    mine = slice(rank * 3, rank * 3 + 3)
    image = whole.image[mine].clone().requires_grad_()
    text = whole.text[mine].clone().requires_grad_()
    loss = contrastive_loss(whole._replace(image=image, text=text), groups[mine], distributed=True)
    loss.backward()
    states, head, tokens, lengths = caption_case()
    row = slice(rank, rank + 1)  # rank 0 has three tokens to predict, rank 1 has two
    caption = captioning_loss(states[row], head, tokens[row], lengths[row], distributed=True)
    found = {"loss": loss.detach(), "image": image.grad, "text": text.grad, "caption": caption}
    torch.save(found, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def caption_case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(2, 5, 6, generator=generator)
    return states, torch.randn(11, 6, generator=generator), TOKENS, LENGTHS


@pytest.mark.slow
@pytest.mark.parametrize("bias", [None, -2.0], ids=["softmax", "sigmoid"])
def test_two_ranks_equal_one_process(bias: float | None, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/rendezvous"
    mp.spawn(rank_losses, args=(2, address, bias, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole, groups = embeddings(6, bias), torch.tensor([0, 1, 0, 2, 3, 1])
    image, text = whole.image.requires_grad_(), whole.text.requires_grad_()
    loss = contrastive_loss(whole, groups)
    loss.backward()
    torch.testing.assert_close(sum(r["loss"] for r in ranks) / 2, loss.detach())
    for name, expected in (("image", image.grad), ("text", text.grad)):
        # The mean over ranks, which is what data-parallel training takes of all gradients.
        torch.testing.assert_close(torch.cat([r[name] for r in ranks]) / 2, expected)
    caption = captioning_loss(*caption_case())
    torch.testing.assert_close(sum(r["caption"] for r in ranks) / 2, caption)
