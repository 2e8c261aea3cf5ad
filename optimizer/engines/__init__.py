"""Engine command lines and their flags, one file an engine."""
