"""The command `ablate`: its arguments, and what each command does in order."""
