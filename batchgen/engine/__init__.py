"""Runs work on a pool until it is done: the loop, the rules of retry, the door to Ray."""
