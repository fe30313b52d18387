"""The definition of everything, in plain numpy, against which every backend is tested."""
