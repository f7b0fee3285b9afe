from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from assemblies import captioning_loss, contrastive_chance, contrastive_loss


def unit(rows: int = 4) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 6), dim=-1)


def test_contrastive_is_infonce_of_both_directions() -> None:
    image, text, scale = unit(), unit(), torch.tensor(5.0)
    expected = 0.0
    for i in range(4):
        for a, b in ((image, text), (text, image)):
            scores = [5.0 * float(a[i] @ b[j]) for j in range(4)]
            expected -= scores[i] - math.log(sum(math.exp(s) for s in scores))
    got = contrastive_loss(image, text, scale, torch.arange(4))
    assert float(got) == pytest.approx(expected / 8, rel=1e-5)


def test_pairs_of_a_group_are_no_negatives() -> None:
    image, text, scale = unit(), unit(), torch.tensor(5.0)
    groups = torch.tensor([0, 1, 0, 2])
    expected = 0.0
    for i in range(4):
        for a, b in ((image, text), (text, image)):
            candidates = [j for j in range(4) if j == i or groups[j] != groups[i]]
            scores = {j: 5.0 * float(a[i] @ b[j]) for j in candidates}
            expected -= scores[i] - math.log(sum(math.exp(s) for s in scores.values()))
    got = contrastive_loss(image, text, scale, groups)
    assert float(got) == pytest.approx(expected / 8, rel=1e-5)
    assert float(contrastive_loss(image, text, scale, torch.arange(4))) > float(got)


@pytest.mark.parametrize(("groups", "expected"), [
    ([0, 1, 2, 3], math.log(4)),
    ([0, 0, 1, 2], (2 * math.log(3) + 2 * math.log(4)) / 4),
    ([0, 0, 0], math.log(1)),
])  # fmt: skip
def test_chance_is_the_loss_of_equal_scores(groups: list[int], expected: float) -> None:
    numbers = torch.tensor(groups)
    assert contrastive_chance(numbers) == pytest.approx(expected)
    same = F.normalize(torch.ones(len(groups), 6), dim=-1)
    assert float(contrastive_loss(same, same, torch.tensor(1.0), numbers)) == pytest.approx(
        expected, abs=1e-6
    )


def test_captioning_counts_real_next_tokens_only() -> None:
    states, head = torch.randn(2, 5, 6), torch.randn(11, 6)
    tokens = torch.tensor([[1, 5, 7, 2, 0], [1, 9, 2, 0, 0]])
    lengths = torch.tensor([4, 3])
    terms = []
    for row, length in enumerate((4, 3)):
        for place in range(length - 1):
            logits = states[row, place] @ head.T
            terms.append(-logits.log_softmax(-1)[tokens[row, place + 1]])
    got = captioning_loss(states, head, tokens, lengths)
    torch.testing.assert_close(got, torch.stack(terms).mean())
    noisy = states.clone()
    noisy[0, 3:], noisy[1, 2:] = 99.0, 99.0
    torch.testing.assert_close(captioning_loss(noisy, head, tokens, lengths), got)
