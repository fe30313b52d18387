"""One rank's gradient in, the ranks' mean out: layers, memories, methods, and the exchange that
runs them.
"""
