"""The sample cluster, for `deploy/run`, the tests and the benchmarks: everything real but small."""
