"""The GPU lane: what a bare machine with a GPU and no network runs, and what it brings back."""
