"""Keeping a store: checking and mending it, collecting its garbage, copying between stores."""
