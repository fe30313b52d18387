"""The networks, the data sets, and the batches drawn from them."""
