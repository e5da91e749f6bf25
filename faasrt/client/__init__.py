"""The client: runtimes, the manager that shares them, and what runs programs through them."""
