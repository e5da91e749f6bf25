"""The programs that run inside the sandboxes and servers, in front of the user's code. Data, not modules."""
