"""The command line: arguments, terminal, signals, text tables, and one file for each verb."""
