"""A walk through blocks: real Optuna, real small trainings, in this process."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from samples import SMALL
from test_search import Trainer

from ablate.grids import make_grid
from ablate.ledger import Ledger
from ablate.plan import Plan
from ablate.planner import make_plan
from ablate.search import FIRST_SEED, Budget, NothingFoundError
from ablate.search_blocks import (
    BASE,
    Walked,
    base_grid,
    choices_of,
    choose,
    describe_walk,
    found_grid,
    importances,
    name_of,
    reached,
    walk,
)
from ablate.search_outcomes import Found, Outcome, ranking
from ablate.search_report import write_walk
from assemblies import normalise, preset, with_field
from blocks import KINDS, Registry, default_registry, load_registry
