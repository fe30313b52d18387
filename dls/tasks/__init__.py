"""What is learned: the networks, the data sets, and the batches that are drawn from them."""
