"""What `--search` and its flags ask for."""

from __future__ import annotations

from ablate.cli.run_options import RunOptions
from ablate.search.request import FOUND, KEEP, METHODS, OVER, Request, SearchSize
from blocks import UsageError
from blocks.errors import unknown

FLAGS = {
    "search_trials": "--search-trials",
    "search_space": "--search-space",
    "search_seeds": "--search-seeds",
    "search_generation": "--search-generation",
    "search_keep": "--search-keep",
    "over": "--over",
}


def read_request(options: RunOptions) -> Request | None:
    """Return what the command asks of a search, or None; raises `UsageError` for contradictions."""
    asked = {name for name in FLAGS if getattr(options, name) is not None}
    over = OVER[0] if options.over is None else options.over
    if options.search is None and asked:
        first = next(name for name in FLAGS if name in asked)
        raise UsageError(f"{FLAGS[first]} does nothing without --search optuna")
    if over == "recipes" and options.grid is None:
        raise UsageError("--grid is missing; only --search optuna --over blocks finds its own")
    if options.search is None:
        return None
    if options.search not in METHODS:
        raise unknown("search", options.search, METHODS)
    if over not in OVER:
        raise unknown("thing to search over", over, OVER)
    _refuse_contradictions(over, options)
    sizes = {
        "trials": options.search_trials,
        "seeds": options.search_seeds,
        "generation": options.search_generation,
    }
    return Request(
        over=over,
        budget=SearchSize(**{name: count for name, count in sizes.items() if count is not None}),
        space=options.search_space,
        keep=KEEP if options.search_keep is None else options.search_keep,
    )


def _refuse_contradictions(over: str, options: RunOptions) -> None:
    useless = "search_space" if over == "blocks" else "search_keep"
    if getattr(options, useless) is not None:
        raise UsageError(f"{FLAGS[useless]} does nothing with --over {over}")
    if options.search_keep is not None and options.search_keep < 1:
        raise UsageError(f"--search-keep must be at least 1, got {options.search_keep}")
    if over == "blocks" and options.grid not in (None, FOUND):
        raise UsageError(f"--over blocks finds its own grid: leave --grid {options.grid} out")
    if over == "blocks" and (options.primary or options.cells):
        raise UsageError("--primary and --cells name cells, which --over blocks has yet to find")
