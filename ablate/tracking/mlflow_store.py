"""Opens MLflow stores, and says in one sentence what is wrong with one.

A store that cannot work (a file that is no database, a missing driver) is refused before anything
is trained. One that merely does not answer now is another matter: the ledger is the record.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ablate.core.provenance import without_passwords
from blocks import UsageError

EXPERIMENT = "coca-blocks"
SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")
DATABASES = ("postgresql", "mysql", "mssql")
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
TIMEOUT = 5.0  # seconds
MLFLOW_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}


class StoreError(Exception):
    """A store does not answer, or cannot take a study; the message is one sentence."""


def absolute_store(uri: str) -> str:
    """Return a store's URI with the path of a relative sqlite file made absolute."""
    if uri.startswith(SQLITE) and not uri.startswith(SQLITE + "/") and uri != SQLITE:
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}"
    return uri


def sqlite_file(store: str) -> Path | None:
    """Return the file of an absolute sqlite URI, or None for another kind of store."""
    return Path(store.removeprefix(SQLITE)) if store.startswith(SQLITE) else None


def experiment_name(uri: str) -> str:
    """Return the experiment that studies are logged to; on Databricks it is a workspace path."""
    shared = "/Shared/" if uri.startswith("databricks") else ""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or shared + EXPERIMENT


def check_store(uri: str) -> None:
    """Raise `UsageError` for what cannot be an MLflow store, before anything is trained."""
    store, words = absolute_store(uri), without_passwords(uri)
    file = sqlite_file(store)
    if file is not None:
        _check_file(file, words)
    elif store.startswith(DATABASES):
        _check_driver(store)
    elif store.startswith(SERVERS):
        if not _host(store):
            raise UsageError(f"--mlflow {words!r} names no host; write http://HOST:PORT")
    elif store != "databricks" and not store.startswith("databricks://"):
        guess = f"; did you mean {SQLITE}{words}?" if uri.endswith(".db") else ""
        raise UsageError(
            f"cannot log to --mlflow {words!r}; write sqlite:///FILE.db, a server's "
            f"http://HOST:PORT, a database's postgresql:// or mysql://, or databricks{guess}"
        )


def _host(server: str) -> str:
    """Return the host that a server's URI names, or nothing if it cannot be read."""
    try:
        return urlsplit(server).hostname or ""
    except ValueError:
        return ""


def without_user(server: str) -> str:
    """Return a server's URI without the user and the password in it."""
    parts = urlsplit(server)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _check_file(file: Path, uri: str) -> None:
    """Refuse a sqlite file that MLflow could not write."""
    if not file.name or file.is_dir():
        raise UsageError(f"--mlflow {uri!r} names no file; write sqlite:///FILE.db")
    if not file.parent.is_dir():
        raise UsageError(f"--mlflow {uri!r}: there is no folder {str(file.parent)!r}")
    for place in (file.parent, *([file] if file.exists() else [])):  # sqlite writes beside as well
        if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise UsageError(
                f"--mlflow {uri!r}: {str(place)!r} is read-only; change that, or use another file"
            )
    if not file.exists():
        return
    try:
        tables, revision = _look_into(file)
    except sqlite3.Error as error:
        if "locked" in str(error):
            return  # by another writer, at this moment
        raise UsageError(
            f"--mlflow {uri!r}: the file cannot be used ({error}); move it away, or use another"
        ) from None
    if tables and "experiments" not in tables:
        raise UsageError(f"--mlflow {uri!r} is a database of another program, with no MLflow in it")
    if revision:
        _check_schema(revision, uri)


def _look_into(file: Path) -> tuple[set[str], str]:
    """Return the tables of a sqlite file, and MLflow's schema version if it has one."""
    address = f"{file.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=1.0)) as database:
        tables = {str(name) for (name,) in database.execute("select name from sqlite_master")}
        if "alembic_version" not in tables:
            return tables, ""
        row = database.execute("select version_num from alembic_version").fetchone()
        return tables, str(row[0]) if row else ""


def _check_schema(revision: str, uri: str) -> None:
    """Refuse a database whose tables are another MLflow's; MLflow would refuse it as well."""
    revisions = schema_revisions()
    if not revisions or revision == revisions[0]:
        return
    mine = version("mlflow")
    if revision in revisions:
        raise UsageError(
            f"--mlflow {uri!r} was written by an older MLflow than {mine}; back the file up and "
            f"run `mlflow db upgrade {uri}`, or use another file"
        )
    raise UsageError(
        f"--mlflow {uri!r} was written by another MLflow than {mine} (schema {revision}), probably "
        "a "
        "newer one; install that version, or use another file"
    )


def schema_revisions() -> list[str]:
    """Return the installed MLflow's schema versions, the newest first; none if it hides them.

    They are read from its migrations as text: to import those takes seconds.
    """
    package = importlib.util.find_spec("mlflow")
    assert package is not None, "MLflow is a dependency"
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    before: dict[str, str] = {}
    for text in texts:
        revisions = dict(re.findall(r"^(revision|down_revision)\s*=\s*[\"'](\w+)[\"']", text, re.M))
        if "revision" in revisions:
            before[revisions["revision"]] = revisions.get("down_revision", "")
    heads = before.keys() - set(before.values())
    return [*heads, *(before.keys() - heads)] if len(heads) == 1 else []


def _check_driver(store: str) -> None:
    """Refuse a database URI that cannot be read or whose Python driver is missing."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    name = without_passwords(store)
    try:
        make_url(store).get_dialect().import_dbapi()
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"cannot read --mlflow {name!r}: {error}") from None
    except ValueError:  # which quotes what it took for the port: maybe a part of the password
        raise UsageError(f"cannot read --mlflow {name!r}: its port is no number") from None
    except ImportError as error:
        raise UsageError(
            f"--mlflow {name!r} needs the Python package {error.name!r}; pip install it, "
            "or name another driver as in mysql+pymysql://"
        ) from None


def connect(uri: str, warn: Callable[[str], None]) -> Any:
    """Return an `MlflowClient` of a store that answers; raises `StoreError` if it does not.

    ``warn`` is told of a server whose version is another one.
    """
    store = absolute_store(uri)
    _probe(store, warn)
    os.environ.update({k: v for k, v in MLFLOW_ENVIRONMENT.items() if k not in os.environ})
    from mlflow import MlflowClient

    for name in (
        "mlflow",
        "alembic",
        "databricks",
    ):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return MlflowClient(tracking_uri=store)
    except Exception as error:
        raise StoreError(explain(error)) from error


def _probe(store: str, warn: Callable[[str], None]) -> None:
    """Ask whether anything answers: MLflow itself would retry for minutes."""
    if store.startswith(SERVERS):
        theirs, mine = _server_version(store), version("mlflow")
        if theirs and theirs.split(".")[:2] != mine.split(".")[:2]:
            warn(
                f"the MLflow server {without_passwords(store)} has version {theirs}, this study "
                f"{mine}; if something is missing there, install the same version"
            )
    elif store.startswith(DATABASES):
        from sqlalchemy.engine import make_url

        place = make_url(store)  # as the driver reads it, whatever marks the password has
        port = place.port or PORTS[place.get_backend_name()]
        if place.host:
            try:
                socket.create_connection((place.host, port), timeout=TIMEOUT).close()
            except OSError as error:
                raise StoreError(f"does not answer ({error.strerror or error})") from None


def _server_version(store: str) -> str:
    """Return a server's version, or nothing if it answers but does not tell."""
    try:
        with urllib.request.urlopen(f"{without_user(store)}/version", timeout=TIMEOUT) as answer:
            text = answer.read(100).decode("ascii", errors="replace").strip()
            return text if text[:1].isdigit() else ""
    except urllib.error.HTTPError:
        return ""  # an older server, or one behind a login
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise StoreError(f"does not answer ({getattr(reason, 'strerror', '') or reason})") from None


def explain(error: BaseException) -> str:
    """Return an error of any backend as one short line."""
    text = re.sub(r"^\([\w.]+Error\) ", "", str(error).strip()) or repr(error)
    return without_passwords(text.splitlines()[0]).rstrip(".")[:200]


def find_experiment(client: Any, uri: str) -> str | None:
    """Return the id of the experiment of studies, or None; raises `StoreError` if deleted."""
    name = experiment_name(uri)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    if experiment.lifecycle_stage != "active":
        raise StoreError(
            f"its experiment {name!r} was deleted; restore it with "
            f"`mlflow experiments restore -x {experiment.experiment_id}`, or use another store"
        )
    return str(experiment.experiment_id)


def make_experiment(client: Any, uri: str) -> str:
    """Return the id of the experiment of studies, created where there is none."""
    if (experiment := find_experiment(client, uri)) is not None:
        return experiment
    file = sqlite_file(absolute_store(uri))
    location = (file.parent / "mlartifacts").as_uri() if file else None
    try:
        return str(client.create_experiment(experiment_name(uri), artifact_location=location))
    except Exception:
        experiment = find_experiment(client, uri)  # another driver may have been first
        if experiment is None:
            raise
        return experiment


def is_active(client: Any, run: str) -> bool:
    """Return whether a run is there and was not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(run) and bool(client.get_run(run).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
