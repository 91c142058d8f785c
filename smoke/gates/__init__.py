"""Gates: each one a pure function in one file that turns evidence into findings."""
