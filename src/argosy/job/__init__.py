"""What was asked: a TOML file in, a typed tree out. Knows no machine."""
