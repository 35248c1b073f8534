"""The engine: keys, limits, windows, permits, admission. Time is always an argument, in nanoseconds."""
