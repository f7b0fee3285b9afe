"""Draws what the results object holds; computes nothing."""
