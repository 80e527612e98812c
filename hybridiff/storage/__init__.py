"""STORAGE. Files on any fsspec file system: published atomically, leased, with retries."""
