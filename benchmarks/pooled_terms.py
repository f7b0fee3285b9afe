"""The textbooks' analysis of a factorial, which no report uses: see docs/statistics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import special

from ablate.stats.factorial import Part, Swaps, _adjusted, _name, terms
from ablate.stats.tests_and_intervals import Values, standard_error, t_quantile


def pooled_terms(gains: Mapping[Swaps, Values]) -> list[Part]:
    """Return the textbooks' analysis of terms, which gives all of them one error, seed by cell.

    It has more degrees of freedom, but where a swap's gain varies over seeds its intervals of three
    seeds hold in 3 of 4 studies only: no report uses it.
    """
    table = terms(gains)
    error = math.sqrt(np.mean([standard_error(values) ** 2 for values in table.values()]))
    freedom = len(table) * (len(gains[frozenset()]) - 1)
    half = t_quantile(freedom) * error
    parts = {}
    for term, values in table.items():
        mean = float(values.mean())
        p = 2 * float(special.stdtr(freedom, -abs(mean) / error))
        parts[term] = Part(name=_name(term), estimate=mean, low=mean - half, high=mean + half, p=p)
    return _adjusted(parts)
