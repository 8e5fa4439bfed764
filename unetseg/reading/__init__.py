"""What users bring: files, tables, descriptions and patients, read and told apart."""
