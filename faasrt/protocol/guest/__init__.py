"""Source text that runs in sandboxes and on servers, in front of the user's code. These files are data, not modules."""
