from __future__ import annotations

import pytest
import torch

from blocks import Positions, Site, Unsupported, default_registry


def build(spelling: str, **site: object) -> Positions:
    block = default_registry().build("position", spelling, Site(**{"dim": 32, "heads": 2, **site}))
    assert isinstance(block, Positions)
    return block


def scores(rope: Positions, q: torch.Tensor, k: torch.Tensor, n: int) -> torch.Tensor:
    """Return the score of one query and one key vector at every pair of positions [n n]."""
    rows = torch.ones(1, 1, n, 1)
    turned_q, turned_k = rope.rotate(rows * q, rows * k)
    return (turned_q @ turned_k.transpose(-1, -2))[0, 0]


def test_rope_scores_depend_on_distance_only() -> None:
    table = scores(build("rope", grid=(9,)), torch.randn(16), torch.randn(16), 9)
    for distance in range(-8, 9):
        diagonal = table.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    assert table.std() > 0.01


def test_rope_on_a_grid_depends_on_row_and_column_distance_only() -> None:
    rows, columns = 4, 5
    table = scores(build("rope", grid=(rows, columns)), torch.randn(16), torch.randn(16), 20)
    seen: dict[tuple[int, int], float] = {}
    for i in range(20):
        for j in range(20):
            offset = (i // columns - j // columns, i % columns - j % columns)
            assert table[i, j].item() == pytest.approx(
                seen.setdefault(offset, table[i, j].item()), abs=1e-4
            )
    assert len({round(v, 3) for v in seen.values()}) > 20


def test_rope_is_the_rotation_of_the_paper() -> None:
    q = torch.randn(1, 1, 7, 16)
    turned, _ = build("rope(theta=500.0)", grid=(7,)).rotate(q, q)
    for position in range(7):
        for pair in range(8):
            angle = torch.tensor(position * 500.0 ** (-pair / 8))
            x, y = q[0, 0, position, 2 * pair], q[0, 0, position, 2 * pair + 1]
            expected = [x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()]
            got = turned[0, 0, position, 2 * pair : 2 * pair + 2]
            torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_rope_with_an_offset_continues_the_sequence() -> None:
    rope, q = build("rope", grid=(9,)), torch.randn(2, 2, 9, 16)
    whole, _ = rope.rotate(q, q)
    later, _ = rope.rotate(q[:, :, 4:], q[:, :, 4:], offset=4)
    torch.testing.assert_close(later, whole[:, :, 4:])


def test_rope_keeps_lengths_and_dtype() -> None:
    q = torch.randn(2, 2, 9, 16)
    turned, _ = build("rope", grid=(3, 3)).rotate(q, q)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
    assert build("rope", grid=(9,)).rotate(q.bfloat16(), q.bfloat16())[0].dtype == torch.bfloat16


def test_sincos_is_the_formula_on_one_axis() -> None:
    table = build("sincos", grid=(6,)).embed(torch.zeros(1, 6, 32))[0]
    for position in range(6):
        for pair in range(16):
            angle = torch.tensor(position * 10000.0 ** (-pair / 16))
            torch.testing.assert_close(table[position, pair], angle.sin())
            torch.testing.assert_close(table[position, 16 + pair], angle.cos())


@pytest.mark.parametrize("name", ["learned", "sincos"])
def test_added_positions_differ_everywhere_and_follow_the_offset(name: str) -> None:
    block, x = build(name, grid=(3, 4)), torch.zeros(2, 12, 32)
    whole = block.embed(x)
    distance = torch.cdist(whole[0], whole[0]) + torch.eye(12)
    assert distance.min() > 1e-3
    torch.testing.assert_close(block.embed(x[:, 5:], offset=5), whole[:, 5:])


@pytest.mark.parametrize(("spelling", "site"), [
    ("rope", {"dim": 30, "heads": 1, "grid": (4, 4)}),
    ("rope", {"dim": 6, "heads": 2, "grid": (4,)}),
    ("sincos", {"dim": 6, "heads": 1, "grid": (4, 4)}),
    ("rope(theta=0.5)", {"grid": (4,)}),
])  # fmt: skip
def test_sites_that_cannot_be_served_say_why(spelling: str, site: dict[str, object]) -> None:
    with pytest.raises(Unsupported, match=r"divisible by \d, got|above 1, got 0.5"):
        build(spelling, **site)


def test_rope_turns_a_fraction_and_leaves_the_rest() -> None:
    q = torch.randn(1, 2, 5, 16)
    half, _ = build("rope(fraction=0.5)", grid=(5,)).rotate(q, q)
    assert torch.equal(half[..., 8:], q[..., 8:])
    whole, _ = build("rope", grid=(5,), dim=16).rotate(q[..., :8], q[..., :8])
    torch.testing.assert_close(half[..., :8], whole)


def test_mixed_rope_depends_on_row_and_column_distance_only() -> None:
    rope = build("rope_mixed", grid=(3, 4))
    rows = torch.ones(1, 1, 12, 1)
    q, k = torch.randn(2, 1, 16), torch.randn(2, 1, 16)
    turned_q, turned_k = rope.rotate(rows * q, rows * k)
    table = (turned_q @ turned_k.transpose(-1, -2))[0]  # [h n n]
    for head in range(2):
        torch.testing.assert_close(table[head, 0, 1], table[head, 5, 6], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(table[head, 0, 5], table[head, 6, 11], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(table[0, 0, 1], table[0, 0, 4], atol=1e-3)


def test_alibi_is_the_papers_table_on_one_axis() -> None:
    alibi = build("alibi", grid=(5,), heads=8, dim=32)
    bias = alibi.bias(5, 5)
    for head in range(8):
        for i in range(5):
            for j in range(i + 1):
                assert bias[head, i, j].item() == pytest.approx(-(i - j) * 2 ** -(head + 1))
    assert torch.equal(alibi.bias(1, 4), bias[:, 3:4, :4])


def test_alibi_on_a_grid_is_the_distance_between_patches() -> None:
    bias = build("alibi(steepness=1.0)", grid=(3, 4), heads=1).bias(12, 12)
    assert bias[0, 0, 6].item() == pytest.approx(-0.5 * (1 + 4) ** 0.5)
    assert torch.equal(bias, bias.transpose(1, 2))


@pytest.mark.parametrize("grid", [(6,), (2, 3)])
def test_relative_bias_has_one_number_per_head_and_offset(grid: tuple[int, ...]) -> None:
    block = build("relative(std=1.0)", grid=grid)
    bias = block.bias(6, 6)
    places = torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(6, -1)
    seen: dict[tuple[int, ...], float] = {}
    for i in range(6):
        for j in range(6):
            offset = tuple((places[i] - places[j]).tolist())
            value = bias[0, i, j].item()
            assert seen.setdefault(offset, value) == value
    assert len(set(seen.values())) == len(seen) == block.table.shape[1]
    torch.testing.assert_close(block.bias(2, 5), bias[:, 3:5, :5])
