"""What the verbs plan, reencode, report and export run."""
