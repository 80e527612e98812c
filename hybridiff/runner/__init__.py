"""HOST: the only room that imports Lightning. Glue between its predict loop and the other rooms."""
