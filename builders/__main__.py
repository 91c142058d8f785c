"""`python -m builders` is `planyard`."""

from builders.cli import main

main()
