"""How much of peers' time goes into training that counts, on shaped links, with deaths, unequal."""
