"""The command line: arguments to calls to exit code. The only room that prints or exits."""
