//! Clusters of real processes for the tests in `tests/`.
