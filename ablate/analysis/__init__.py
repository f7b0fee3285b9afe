"""From a study's ledger to one object with all results; no other room computes a statistic."""
