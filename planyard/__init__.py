"""The ground floor: pure values and rules in `core`, one outside thing a file in `edge`."""

__version__ = "0.1.0"
