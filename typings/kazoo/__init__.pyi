"""What the project uses of kazoo 2.9 to 2.11."""
