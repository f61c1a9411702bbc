"""What the benchmark scripts share: rows and bars, sections with time limits, random models, runs and clocks."""
