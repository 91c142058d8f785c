"""Where plans, images and snapshots lie: one small protocol, one module for each kind of place."""
