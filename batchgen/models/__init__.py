"""What is known of models and of what is put on them before anything is loaded."""
