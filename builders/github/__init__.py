"""GitHub Actions as the engine: its jobs, what they hand each other, and what came of them."""
