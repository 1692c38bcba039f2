"""The command line: arguments, terminal, signals, tables for people, and one file for each verb."""
