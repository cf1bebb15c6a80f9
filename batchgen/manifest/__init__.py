"""What users write: files of records, the column contract, cells, and what is wrong with them."""
