"""Runs trials on this machine or a cluster with Ray Tune."""
