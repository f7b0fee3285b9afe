"""Pure functions of numbers: tests, intervals, effects, factorials, group-sequential designs."""
