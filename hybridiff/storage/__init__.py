"""STORAGE. Files anywhere, waited for where they may be late."""
