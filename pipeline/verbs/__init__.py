"""What can be typed behind `python -m pipeline`: one `cli.Command` for each verb."""
