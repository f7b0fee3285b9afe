"""Links into MLflow's pages, and a view of a study that is ready when its link is opened.

MLflow keeps a shared view as a tag of the experiment. Its format is internal to MLflow (seen in
3.17) and undocumented, so the view is an extra: the plain links beside it need nothing of the kind.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ablate.core.metrics import DECIDES, compared

TAG = "mlflow.sharedViewState."
LOADED = 100  # runs that a page loads at first, and all that a grouped one shows
MAX_COMPARED = 50  # runs that the comparison page shows in a bearable time
COST = "parameters"  # a group of runs has means of numbers only, hence no names of blocks


def view_key(parent: str, role: str = "trial") -> str:
    """Return the key of a study's view of its trials or effects, from the id of its run."""
    return f"{role}s-{parent[:12]}"


def runs_filter(parent: str, role: str = "trial") -> str:
    """Return MLflow's search expression for the runs of a role that a study has now."""
    return (
        f"tags.`ablate.role` = '{role}' and tags.`ablate.current` = 'true' "
        f"and tags.`mlflow.parentRunId` = '{parent}'"
    )


def views(parent: str, prefixes: Sequence[str], decides: str) -> dict[str, str]:
    """Return a study's views as tags of the experiment.

    That of trials has runs by cell, bars of final metrics, curves and parallel coordinates.
    ``prefixes`` stand before the metrics of the study's fine-tunings.
    """
    return {
        TAG + view_key(parent, "trial"): _pack(_trials_view(parent, prefixes, decides)),
        TAG + view_key(parent, "effect"): _pack(_effects_view(parent, prefixes, decides)),
    }


def _trials_view(parent: str, prefixes: Sequence[str], decides: str) -> dict[str, Any]:
    # The deciding metric is first, as its chart is the largest.
    keys = sorted((metric.key for metric in compared()), key=lambda key: key != decides)
    first = [f"test/{key}" for key in keys]
    bars = [*first, *(f"{prefix}test/{decides}" for prefix in prefixes)]
    charts = [_chart("BAR", name, metricKey=name) for name in bars]
    charts += [_curve(name) for name in (f"val/{decides}", "train/loss")]
    charts.append(_chart("PARALLEL", "all", selectedParams=[COST], selectedMetrics=first))
    sections = [{"uuid": "cells", "name": "Cells", "display": True, "isReordered": False}]
    columns = ["params.`cell`", "params.`seed`", *(f"metrics.`{name}`" for name in bars)]
    by_cell = [{"mode": "param", "groupByData": "cell"}]
    # The page shows 100 runs. By a metric they would be the best ones, and averages flattering; by
    # pair they are as many of each cell.
    return _state(parent, "trial", "params.`pair`", columns) | {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": by_cell},
        "useGroupedValuesInCharts": True,
        "compareRunSections": sections,
        "compareRunCharts": charts,
    }


def _effects_view(parent: str, prefixes: Sequence[str], decides: str) -> dict[str, Any]:
    numbers = [f"{decides}/{name}" for name in ("estimate", "low", "high", "p_adjusted", "seeds")]
    numbers += [f"{prefix}{decides}/estimate" for prefix in prefixes]
    columns = ["tags.`ablate.verdict`", *(f"metrics.`{name}`" for name in numbers)]
    return _state(parent, "effect", f"metrics.`{decides}/p_adjusted`", columns)


def _state(parent: str, role: str, by: str, columns: Sequence[str]) -> dict[str, Any]:
    return {
        "searchFilter": runs_filter(parent, role),
        "orderByKey": by,
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(columns),
    }


def _pack(state: dict[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), level=9)
    return "deflate;" + base64.b64encode(packed).decode("ascii")


def _chart(kind: str, name: str, **details: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"{kind.lower()}-{name}",
        "runsCountToCompare": 20,
        "metricSectionId": "cells",
        "deleted": False,
        "isGenerated": False,
        **details,
    }


def _curve(name: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "yAxisKey": "metric", "xAxisScaleType": "linear"}
    return _chart(
        "LINE",
        name,
        metricKey=name,
        selectedMetricKeys=[name],
        scaleType="linear",
        yAxisExpressions=[],
        selectedXAxisMetricKey="",
        range={},
        **axes,
    )


def view_link(base: str, experiment: str, parent: str, role: str = "trial") -> str:
    """Return the link to a study's view: charts of its trials, or the table of its effects."""
    mode = "&compareRunsMode=CHART" if role == "trial" else ""
    key = view_key(parent, role)
    return f"{base}/#/experiments/{experiment}/runs?viewStateShareKey={key}{mode}"


def runs_link(base: str, experiment: str, chosen: str, by: str = f"test/{DECIDES}") -> str:
    """Return a link to a table of the runs that a search expression chooses.

    It sorts by a metric, since MLflow hides children under their parents in any other order.
    """
    order = quote(f"metrics.`{by}`", safe="")
    return (
        f"{base}/#/experiments/{experiment}/runs?searchFilter={quote(chosen, safe='')}"
        f"&orderByKey={order}&orderByAsc=true"
    )


def compare_link(base: str, experiment: str, runs: Sequence[str]) -> str:
    """Return a link to the page that compares runs side by side."""
    return (
        f"{base}/#/compare-runs?runs={quote(json.dumps(list(runs)), safe='')}"
        f"&experiments={quote(json.dumps([experiment]), safe='')}"
    )
