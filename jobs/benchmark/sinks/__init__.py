"""Do the sinks keep up? The job against its bare pipeline, shards against a plain upload, ``verify`` against sha256sum."""
