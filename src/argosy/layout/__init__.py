"""Who does which part: ranks, coordinates, groups. Arithmetic only, without torch."""
