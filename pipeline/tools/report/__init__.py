"""`report`: one HTML page about a cache and its students."""
