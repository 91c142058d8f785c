"""Pure values and rules: no clock, environment, network or subprocess."""
