"""Source files of the guest programs, which run in sandboxes and on servers. They are not imported."""
