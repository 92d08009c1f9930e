"""Reports: pure functions of a manifest and a summary."""
