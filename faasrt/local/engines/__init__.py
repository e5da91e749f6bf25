"""What runs the programs: one engine for each family of languages."""
