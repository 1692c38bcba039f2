"""The code of the verbs plan, reencode, report and export."""
