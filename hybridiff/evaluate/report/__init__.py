"""The report: a page of all results in a directory."""
