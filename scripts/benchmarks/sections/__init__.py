"""What is measured: a module a section. `benchmarks.main` has their order."""
