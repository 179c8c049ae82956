"""What is on disk and how it is proved. Knows nothing of torch, models or the command line."""
