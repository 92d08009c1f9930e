"""From records to figures, verdicts and decisions. Pure: no clock, no socket, no process."""
