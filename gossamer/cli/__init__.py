"""The command line: arguments to constructors, results to tables and JSON; no logic of its own."""
