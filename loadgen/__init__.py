"""loadgen: a load tester for LLM servers whose numbers are true."""

__version__ = "0.1.0"
