"""The engines of C, C++ and other languages."""
