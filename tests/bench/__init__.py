"""The figures of docs/benchmarks.md: `nox -s bench`, or `python -m tests.bench --write`."""
