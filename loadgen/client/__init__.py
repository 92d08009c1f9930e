"""What sends: pacing, the wire, and the worker processes. Imports no engine."""
