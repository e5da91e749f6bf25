"""The engines that run programs, one for each family of languages."""
