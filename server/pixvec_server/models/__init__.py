"""What is known of a model without torch: how its weights lie in files, and networks written as graphs."""
