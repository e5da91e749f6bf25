"""The runners: programs that run the user's code inside the sandboxes. They are package data, and never imported."""
