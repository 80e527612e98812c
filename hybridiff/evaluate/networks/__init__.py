"""Networks that turn images into features and scores: named by a file, checked, loaded, with their preprocessing."""
