"""What is shown: pictures and pages of arrays, tables and plans."""
