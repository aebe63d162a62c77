"""What studies add: several seeds, a table, a figure."""
