"""What a plan is, and where it lives."""
