"""Writes a study to MLflow, from the driver alone."""

DEFAULT_STORE = "sqlite:///mlflow.db"
