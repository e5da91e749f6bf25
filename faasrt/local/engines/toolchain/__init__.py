"""The engines of C, C++ and other languages: each compiles and runs programs with a toolchain that is installed."""
