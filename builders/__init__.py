"""The roof: what drives the line from a matrix to a snapshot."""
