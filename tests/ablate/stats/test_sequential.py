from __future__ import annotations

import numpy as np
import pytest

from ablate.stats.sequential import check_looks, level, sequential_p, spent, usual_looks, weights
from ablate.stats.tests_and_intervals import t_interval, t_test_p
from blocks import UsageError

LOOKS = (3, 5, 8)


def test_alpha_is_spent_over_the_looks_and_no_more() -> None:
    parts = spent(LOOKS)
    assert sum(parts) == pytest.approx(0.05, abs=1e-4)
    assert parts == sorted(parts)  # early looks spend little
    assert weights(LOOKS).sum() == pytest.approx(1)
    assert weights(LOOKS) == pytest.approx(np.array([81, 544, 3471]) / 4096)


def test_p_over_all_looks_is_uniform_without_an_effect() -> None:
    generator = np.random.default_rng(5)
    studies = generator.normal(size=(4000, 8))
    found = np.array([sequential_p(values, LOOKS, t_test_p) for values in studies])
    for alpha in (0.01, 0.05, 0.3):
        error = np.sqrt(alpha * (1 - alpha) / len(found))
        assert np.mean(found <= alpha) == pytest.approx(alpha, abs=3.5 * error)


def test_p_never_grows_from_look_to_look_and_exceeds_the_plain_one() -> None:
    values = np.random.default_rng(6).normal(0.5, 1.0, 8)
    found = [sequential_p(values[:n], LOOKS, t_test_p) for n in range(1, 9)]
    assert found[0] == found[1] == 1  # no look yet
    assert found == sorted(found, reverse=True)
    assert found[2] == found[3]  # between looks nothing is looked at
    assert found[2] > t_test_p(values[:3])


@pytest.mark.parametrize("n", [3, 5, 8])
def test_an_interval_at_a_looks_level_excludes_zero_when_p_is_small(n: int) -> None:
    generator = np.random.default_rng(7)
    for shift in generator.uniform(0, 3, 300):
        values = generator.normal(shift, 1.0, n)
        low, high = t_interval(values, 1 - level(LOOKS, n))
        if low > 0 or high < 0:
            assert sequential_p(values, LOOKS, t_test_p) <= 0.0502
    assert level(LOOKS, 2) == 0
    assert level(LOOKS, n) < 0.05


@pytest.mark.parametrize("looks", [(), (5,), (2, 5), (5, 3), (3, 3, 5)])
def test_other_looks_are_refused(looks: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="looks must be"):
        check_looks(looks)
    assert check_looks([3, 5]) == (3, 5)


def test_usual_looks_end_with_the_seeds_asked_for() -> None:
    found = {last: usual_looks(last) for last in (4, 5, 6, 8, 10, 20)}
    assert found == {4: (3, 4), 5: (3, 5), 6: (3, 6), 8: (3, 5, 8), 10: (3, 5, 10),
                     20: (3, 5, 8, 12, 20)}  # fmt: skip
    with pytest.raises(UsageError, match="looks must be"):
        usual_looks(3)
