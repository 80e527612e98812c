"""EXPORT. From a scored corpus to a dataset: choosing rows, copying them, and handing the result on."""
