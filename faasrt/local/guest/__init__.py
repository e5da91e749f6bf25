"""The programs that run inside the sandboxes, in front of the user's code. They are package data, never imported."""
