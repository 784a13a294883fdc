//! Whole lives of pods over the fake runtime.
