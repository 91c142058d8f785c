"""Channels: mutable names for what is served, moved by compare-and-swap."""
