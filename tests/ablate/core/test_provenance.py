from __future__ import annotations

import json

import pytest

from ablate.core.provenance import launch_note, without_passwords


@pytest.mark.parametrize(("uri", "shown"), [
    ("postgresql://me:secret@db.example:5432/mlflow", "postgresql://me:***@db.example:5432/mlflow"),
    ("postgresql://me:secret@secret@db/mlflow", "postgresql://me:***@db/mlflow"),
    ("mysql+pymysql://me:secret/secret@db/mlflow", "mysql+pymysql://me:***@db/mlflow"),
    ("postgresql://me:12/secret@db/mlflow", "postgresql://me:***@db/mlflow"),
    ("postgresql://me:secret?secret#secret@db", "postgresql://me:***@db"),
    ("postgresql://me:secret@secret/secret@db", "postgresql://me:***@db"),
    ("http://me:secret@host:5000", "http://me:***@host:5000"),
    ("HTTPS://secret@host/path", "HTTPS://***@host/path"),
    ("https://:secret@host", "https://:***@host"),
    ("postgresql://db/mlflow?user=me&password=secret", "postgresql://db/mlflow?user=me&password=***"),
    ("http://host/?access_token=secret&x=1", "http://host/?access_token=***&x=1"),
    ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
    ("http://me:secret@host?password=secret", "http://me:***@host?password=***"),
])  # fmt: skip
def test_a_password_is_left_out(uri: str, shown: str) -> None:
    assert without_passwords(uri) == shown
    assert without_passwords(f"ablate.run --mlflow={uri} --set lr=1") == (
        f"ablate.run --mlflow={shown} --set lr=1"
    )
    for arguments in (["--mlflow", uri], [f"--mlflow={uri}"]):
        assert "secret" not in json.dumps(launch_note(arguments))


@pytest.mark.parametrize("text", [
    "sqlite:////a/b@c.db", "http://localhost:5000", "http://localhost:5000/path@tag",
    "postgresql://me@db/mlflow", "postgresql://db:5432/mlflow", "databricks://profile",
    "--set data=hf://datasets/name@main", "the sum a:b@c", "http://[::1]:5000/#/runs",
])  # fmt: skip
def test_what_holds_no_password_stays(text: str) -> None:
    assert without_passwords(text) == text


def test_a_quoted_password_is_left_out_of_the_command() -> None:
    note = launch_note(["--mlflow", "postgresql://me:sec'ret@db/mlflow?a=1&password=sec'ret"])
    assert "sec'" not in json.dumps(note)
