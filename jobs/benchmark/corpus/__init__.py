"""Writing and verifying a corpus, each beside its bound: the bare pipeline, a plain upload, sha256sum."""
