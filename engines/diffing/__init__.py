"""How two sides of a comparison differ: views of snapshots, and what each kind of change means."""
