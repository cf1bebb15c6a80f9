"""What an output is: layouts, schemas, commits, receipts, and the check of all of it."""
