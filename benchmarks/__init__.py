"""Benchmarks. Each script compares several variants in one run, prints a table, and writes JSON."""
