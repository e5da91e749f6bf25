"""What goes over the wire: pure functions and records, no I/O."""
