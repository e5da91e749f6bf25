"""Source files of the guest programs. They run in sandboxes and on servers, and are not imported."""
