"""The engine `wasm` for Python: CPython as WebAssembly, restored from snapshots of its memory."""
