"""What a study would run, what that takes, and what it could show."""
