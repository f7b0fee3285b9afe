"""Writes a study to MLflow, from the driver alone."""
