"""One module per suite; each has ``cases(threads)``, which yields `benchmarks.harness.Case`."""
