"""What the driver process does for a study, in order: search, run, show progress, report."""
