"""What the command line shows and how it reads what it is given."""
