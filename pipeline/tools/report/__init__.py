"""`report`: an HTML page about a cache and its students."""
