"""What is sent: prompts, the files that hold them, and synthetic ones."""
