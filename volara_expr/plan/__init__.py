"""Plans: which nodes are stored, how blocks are cut, what they cost. Planning reads no data and imports no compiler."""
