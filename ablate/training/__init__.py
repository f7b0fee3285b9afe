"""Trains, evaluates and captions: plain PyTorch that knows neither Ray nor MLflow."""
