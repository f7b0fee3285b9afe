"""Numbers, words and data sets for a run of MLflow's, in as few calls as it allows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablate.core.trial import Stage

METRICS_A_CALL, OTHERS_A_CALL = 1000, 100  # MLflow's limits
MAX_KEY, MAX_NAME, MAX_DIGEST = 250, 500, 36  # MLflow's limits, in characters
MAX_VALUE = 5000  # characters that every store's tags and parameters hold


def now() -> int:
    """Return the time in milliseconds, as MLflow counts it."""
    return int(time.time() * 1000)


def key(name: str) -> str:
    """Return a name that MLflow accepts."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("->", "to").replace("@", "_at_"))[:MAX_KEY]


def log_metrics(client: Any, run: str, points: Iterable[Mapping[str, Any]]) -> None:
    """Log points: mappings with a ``step``, perhaps a ``time`` in milliseconds, and metrics."""
    from mlflow.entities import Metric

    this_moment = now()
    metrics = [
        Metric(key(name), float(value), int(point.get("time", this_moment)), int(point["step"]))
        for point in points
        for name, value in point.items()
        if name not in ("step", "time")
    ]
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run, metrics=metrics[start : start + METRICS_A_CALL])


def log_params(client: Any, run: str, values: Mapping[str, Any]) -> None:
    """Log parameters; the same ones again change nothing."""
    from mlflow.entities import Param

    parameters = [Param(key(name), str(value)[:MAX_VALUE]) for name, value in values.items()]
    for start in range(0, len(parameters), OTHERS_A_CALL):
        client.log_batch(run, params=parameters[start : start + OTHERS_A_CALL])


def log_tags(client: Any, run: str, values: Mapping[str, Any]) -> None:
    """Set tags."""
    from mlflow.entities import RunTag

    run_tags = [RunTag(key(name), str(value)[:MAX_VALUE]) for name, value in values.items()]
    for start in range(0, len(run_tags), OTHERS_A_CALL):
        client.log_batch(run, tags=run_tags[start : start + OTHERS_A_CALL])


def log_data(client: Any, run: str, stages: Sequence[Stage]) -> None:
    """Say what each stage was trained on, as MLflow's data sets."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for stage in stages:
        uri = stage.recipe.data
        data = Dataset(
            name=uri if len(uri) <= MAX_NAME else f"...{uri[3 - MAX_NAME :]}",
            digest=stage.data_fingerprint[:MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": uri}),
        )
        tags = [InputTag("mlflow.data.context", "train"), InputTag("ablate.stage", stage.name)]
        inputs.append(DatasetInput(dataset=data, tags=tags))
    client.log_inputs(run, datasets=inputs)
